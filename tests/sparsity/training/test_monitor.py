"""A topology that does not act says so."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_efficient import S2SAM, BiDSTConfig, SparsityCallback, train_sparsely
from hf_efficient.methods import SPARSITY
from hf_efficient.sparsity.tuner.callback import DefaultSparsityCallback
from hf_efficient.sparsity.tuner.loop import weights_of_model
from tests.sparsity.loops import batches, classifier, run, trainable, weights_of
from tests.sparsity.models import ConvNet, llama
from tests.sparsity.tuner.test_trainer import Sentences, arguments, config


def warnings_of(action: Any) -> list[str]:
    """Warnings about the topology while something runs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    about = ("topology", "mask", "gradients (init_steps")
    return [str(w.message) for w in caught if any(word in str(w.message) for word in about)]


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(trainable(model), lr=lr)


@pytest.mark.parametrize("backend", ["dense", "csr"])
@pytest.mark.parametrize(
    "settings", [{}, {"topology": "rigl"}, {"topology": "gmp"}, {"topology": "static", "init": "snip"}]
)
def test_a_plain_loop_is_pointed_to_train_sparsely(settings: dict[str, Any], backend: str) -> None:
    model = classifier(backend=backend, **settings)
    messages = warnings_of(lambda: run(model, sgd(model), batches(30)))
    assert len(messages) == 1  # once, not once a layer
    assert "train_sparsely" in messages[0]
    assert repr(settings.get("topology", "bidst")) in messages[0]


@pytest.mark.parametrize("settings", [{"topology": "static"}, {"topology": "static", "distribution": "uniform"}])
def test_what_needs_nobody_is_not_told(settings: dict[str, Any]) -> None:
    model = classifier(**{"sparsity": 0.95, **settings})
    assert not warnings_of(lambda: run(model, sgd(model), batches(30)))


def test_nobody_is_told_who_does_it_right() -> None:
    """Accumulation over many micro-batches, and S2-SAM."""
    for topology in ("bidst", "set", "static"):
        model = classifier(topology=topology)
        optimizer = S2SAM(trainable(model), torch.optim.SGD, lr=0.1) if topology == "set" else sgd(model, 2.0)

        def train() -> None:
            train_sparsely(model, optimizer, 12)
            for data in zip(*[iter(batches(48))] * 4):
                if isinstance(optimizer, S2SAM):
                    optimizer.perturb()
                for x, y in data * 13:
                    (F.cross_entropy(model(x), y) / 52).backward()
                optimizer.step()
                optimizer.zero_grad()

        if topology == "static":
            model = classifier(topology=topology)
            optimizer = sgd(model)
        assert not warnings_of(train), topology


def test_an_optimizer_that_takes_no_step_is_noticed() -> None:
    model = classifier()
    watched, other = sgd(model), sgd(model)
    train_sparsely(model, watched, 100)
    messages = warnings_of(lambda: run(model, other, batches(60)))
    assert len(messages) == 1
    assert "another one trains" in messages[0]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"update_interval": 100}, 50),
        ({"stop_fraction": 0.1}, 20),
        ({"drop_fraction": 0.0}, 20),
        ({}, 4),
        ({"init": "gradient", "init_steps": 15}, 20),
    ],
)
def test_a_training_that_leaves_no_exchange_is_told_at_its_start(settings: dict[str, Any], steps: int) -> None:
    model = classifier(**settings)
    messages = warnings_of(lambda: train_sparsely(model, sgd(model), steps))
    assert len(messages) == 1
    assert "will exchange no weight" in messages[0]
    assert "update_interval" in messages[0]


def test_probing_for_the_whole_training_is_told() -> None:
    model = classifier(init="snip", init_steps=20)
    assert any("no weight learns" in message for message in warnings_of(lambda: train_sparsely(model, sgd(model), 20)))


def test_the_planned_last_exchange_is_the_last_that_is_due() -> None:
    for name, make in ((row.name, row.implementation) for row in SPARSITY.methods):
        for total, interval, share, stop in (
            (20, 4, 0.3, 0.75),
            (7, 3, 0.3, 1.0),
            (10, 20, 0.3, 0.9),
            (16, 4, 0.3, 0.5),
        ):
            topology = make(total, interval, share, stop)
            due = [step for step in range(1, total + 1) if topology.due(step)]
            assert topology.last_exchange() == (due[-1] if due else 0), (name, total)


def test_exchanges_that_never_happen_are_told_when_the_last_has_passed() -> None:
    """One active weight per layer: a third of it is none."""
    model = classifier(sparsity=0.998, distribution="uniform", topology="set")
    optimizer = sgd(model)
    train_sparsely(model, optimizer, 20)
    messages = warnings_of(lambda: run(model, optimizer, batches(20)))
    assert len(messages) == 1
    assert "never exchanged" in messages[0]


def test_a_trainer_that_ends_before_the_first_exchange_or_has_no_callback_is_told(tmp_path: Any) -> None:
    model = get_peft_model(llama(), config(update_interval=50, score_interval=5))
    trainer = Trainer(model, arguments(tmp_path, max_steps=12), train_dataset=Sentences())
    assert any("will exchange no weight" in message for message in warnings_of(trainer.train))
    model = get_peft_model(llama(), config())
    trainer = Trainer(model, arguments(tmp_path, max_steps=12), train_dataset=Sentences())
    trainer.remove_callback(DefaultSparsityCallback)
    assert any("callbacks=[SparsityCallback()]" in message for message in warnings_of(trainer.train))
    model = get_peft_model(llama(), config(update_interval=8))
    trainer = Trainer(model, arguments(tmp_path, max_steps=30), train_dataset=Sentences())

    class Stop(SparsityCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None: ...

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 5

    trainer.add_callback(Stop())
    messages = warnings_of(trainer.train)
    assert len(messages) == 1
    assert "5 of 5 optimizer steps and never exchanged" in messages[0]


def test_accelerates_loop_moves_weights() -> None:
    """With the prepared optimizer, and with the one that was prepared later."""
    for before in (True, False):
        accelerator = Accelerator(cpu=True)
        model = classifier(topology="rigl")
        optimizer = sgd(model)
        if before:
            training = train_sparsely(model, optimizer, 20)
        prepared, wrapped = accelerator.prepare(model, optimizer)
        if not before:
            training = train_sparsely(prepared, wrapped, 20)
        for x, y in batches(20):
            accelerator.backward(F.cross_entropy(prepared(x), y))
            wrapped.step()
            wrapped.zero_grad()
        assert training.steps == 20
        assert training.report()["mask_updates"] == 3


def test_a_second_call_does_not_count_steps_twice() -> None:
    model = classifier()
    optimizer = sgd(model)
    train_sparsely(model, optimizer, 100)
    training = train_sparsely(model, optimizer, 20)
    run(model, optimizer, batches(20))
    assert training.steps == 20


def test_adapters_that_cannot_learn_are_refused() -> None:
    model = classifier(target="delta", init="random")
    model.add_adapter("second", BiDSTConfig(target="delta", init="random", target_modules=["0", "2"], sparsity=0.8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'second' is not used .*set_adapter\('second'\)"):
        train_sparsely(model, optimizer, 100, adapter_name="second")
    with model.disable_adapter(), pytest.raises(ValueError, match="is not used"):
        train_sparsely(model, optimizer, 100, adapter_name="default")
    for weight in weights_of(model):
        weight.values.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen.*is_trainable=True"):
        train_sparsely(model, optimizer, 100, adapter_name="default")


def test_of_two_adapters_that_train_the_one_without_an_engine_is_told() -> None:
    model = classifier(target="delta", init="random")
    model.add_adapter("second", BiDSTConfig(target="delta", init="random", target_modules=["0", "2"], sparsity=0.8))
    model.base_model.set_adapter(["default", "second"])
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    train_sparsely(model, optimizer, 30)
    with pytest.raises(ValueError, match="an optimizer of its own"):
        train_sparsely(model, optimizer, 30, adapter_name="second")
    messages = warnings_of(lambda: run(model, optimizer, batches(30)))
    assert len(messages) == 1
    assert "'second'" in messages[0]


def test_optimizers_that_step_in_backward_or_are_not_known_are_refused_at_the_start() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="inside backward"):
        train_sparsely(model, LayerWiseDummyOptimizer(optimizer_dict={}), 100)
    with pytest.raises(ValueError, match="LBFGS"):
        train_sparsely(model, torch.optim.LBFGS(trainable(model)), 100)
    static = classifier(topology="static")
    train_sparsely(static, torch.optim.LBFGS(trainable(static)), 100)  # nothing will move


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW32bit", "AdamW"])
def test_bidst_exchanges_weights_behind_eight_bit_optimizers(name: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4))
    model = get_peft_model(net, BiDSTConfig(sparsity=0.8, target_modules=["0"], update_interval=5, score_interval=1))
    make = torch.optim.AdamW if name == "AdamW" else getattr(bitsandbytes.optim, name)
    optimizer = make(trainable(model), lr=0.01)
    training = train_sparsely(model, optimizer, 40)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        x = torch.randn(32, 128, generator=generator)
        F.cross_entropy(model(x), x[:, :4].argmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert training.report()["mask_updates"] >= 3


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit"])
def test_eight_bit_training_resumes_bit_for_bit(name: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def make() -> tuple[Any, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4))
        config = BiDSTConfig(sparsity=0.8, target_modules=["0"], update_interval=3, backend="dense")
        model = get_peft_model(net, config)
        return model, getattr(bitsandbytes.optim, name)(trainable(model), lr=0.01)

    data = [(x, x[:, :4].argmax(1)) for x in torch.randn(20, 32, 128, generator=torch.Generator().manual_seed(1))]
    model, optimizer = make()
    training = train_sparsely(model, optimizer, 20)
    run(model, optimizer, data[:8])
    assert training.report()["mask_updates"]
    assert any(state["state1"].dtype == torch.uint8 for state in optimizer.state.values())
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, data[8:])
    again, optimizer = make()
    again.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train_sparsely(again, optimizer, 20)
    run(again, optimizer, data[8:])
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_optimizers_that_overwrite_gradients_choose_as_those_that_do_not() -> None:
    """Nesterov momentum over lists adds to the gradients themselves."""
    models = {}
    for foreach in (False, True):
        models[foreach] = classifier()
        optimizer = torch.optim.SGD(trainable(models[foreach]), lr=0.1, momentum=0.9, nesterov=True, foreach=foreach)
        train_sparsely(models[foreach], optimizer, 20)
        run(models[foreach], optimizer, batches(20))
    for a, b in zip(weights_of(models[False]), weights_of(models[True])):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.values, b.values)


def test_the_report_tells_the_sparsity_of_the_whole_model_too() -> None:
    net = ConvNet()
    total = sum(p.numel() for p in net.parameters())
    sparse = net.hidden.weight.numel()
    model = get_peft_model(copy.deepcopy(net), BiDSTConfig(sparsity=0.9, target_modules=["hidden"], update_interval=4))
    assert weights_of_model(model) == total
    report = train_sparsely(model, sgd(model), 40).report()
    plain = copy.deepcopy(model).merge_and_unload()
    assert report["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert report["model_sparsity"] == pytest.approx(0.9 * sparse / total, abs=1e-3)
    assert report["model_sparsity"] == pytest.approx(float((plain.hidden.weight == 0).sum()) / total)
    delta = BiDSTConfig(sparsity=0.9, target="delta", init="random", target_modules=["hidden"], update_interval=4)
    model = get_peft_model(get_peft_model(net, LoraConfig(target_modules=["fc"])).base_model.model, delta)
    assert weights_of_model(model) == total
    assert train_sparsely(model, sgd(model), 40).report()["model_sparsity"] == pytest.approx(
        1 - 0.1 * sparse / total, abs=1e-3
    )
