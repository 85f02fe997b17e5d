"""`step(closure)` as Lightning and torch have it, and states of other methods."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM, LookSAM
from tests.optimization.loop.loops import loss_of, network, same, step, steps, values
from tests.optimization.training.trainers import build


def with_backward(net: nn.Module, opt: Any, number: int) -> Any:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(net, number)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("cls", [S2SAM, MSAM])
def test_step_with_a_closure_is_a_perturbed_step(cls: Any) -> None:
    net, twin = network(batch_norm=True), network(batch_norm=True)
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    opt, other = cls(net.parameters(), torch.optim.SGD, **settings), cls(twin.parameters(), torch.optim.SGD, **settings)
    for number in range(4):
        loss = opt.step(with_backward(net, opt, number))
        assert loss.item() > 0
        step(twin, other, number)
        assert same(values(net), values(twin))


def test_a_closure_without_backward_does_not_stand_for_perturb() -> None:
    """As Lightning's `self.optimizers().step()` has one in manual optimization."""
    net = network()
    opt = S2SAM(net.parameters(), torch.optim.SGD, lr=0.1)
    steps(net, opt, 2)
    before = values(net)
    loss_of(net, 2).backward()
    with (
        pytest.warns(UserWarning, match="after a backward"),
        pytest.raises(ValueError, match=r"optimizers\(\)\.perturb"),
    ):
        opt.step(lambda: None)
    assert same(values(net), before)


@pytest.mark.parametrize("cls", [SAM, ZOSAM, LookSAM])
def test_step_with_a_closure_names_the_way_where_the_batch_is_needed(cls: Any) -> None:
    net = network()
    opt = cls(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match=r"opt\.perturb\(.*manual optimization"):
        opt.step(with_backward(net, opt, 0))
    opt.perturb(lambda: loss_of(net, 0))
    opt.step(with_backward(net, opt, 0))  # who has perturbed may do the rest in a closure


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("cls", [S2SAM, SAM])
def test_lightning(cls: Any, manual: bool, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.automatic_optimization = network(batch_norm=True), not manual

        def configure_optimizers(self) -> Any:
            return cls(self.net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)

        def training_step(self, number: Any, _: int) -> Any:
            if not manual:
                return loss_of(self.net, int(number))
            opt = self.optimizers()
            opt.perturb(lambda: loss_of(self.net, int(number)))
            self.manual_backward(loss_of(self.net, int(number)))
            opt.step()
            opt.zero_grad()
            return None

    module = Module()
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    data: Any = torch.utils.data.DataLoader([0, 1, 2, 3], batch_size=None)  # type: ignore[arg-type]
    if cls is SAM and not manual:
        with pytest.raises(ValueError, match="manual optimization"):
            trainer.fit(module, data)
        return
    trainer.fit(module, data)
    net = network(batch_norm=True)
    opt = cls(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9)
    for number in range(4):
        step(net, opt, number)
    assert same(values(module.net), values(net))


def test_a_stock_trainer_that_does_not_call_train_is_refused(tmp_path: Path) -> None:
    from transformers import Trainer

    class Own(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    keywords = {"base_optimizer": torch.optim.AdamW, "lr": 1e-2}
    trainer = build(tmp_path, None, cls=Own, build_kwargs={"optimizer_cls_and_kwargs": (S2SAM, keywords)})
    with pytest.raises(ValueError, match=r"S2SAM: perturb\(\) was not called.*opt\.train\(\)"):
        trainer.train()


@pytest.mark.parametrize(("before", "after"), [(S2SAM, LookSAM), (S2SAM, SAM), (LookSAM, S2SAM)])
def test_loading_the_state_of_another_method_says_what_is_dropped(before: Any, after: Any) -> None:
    net = network()
    opt = before(net.parameters(), torch.optim.SGD, lr=0.1)
    for number in range(3):
        step(net, opt, number)
    other = after(net.parameters(), torch.optim.SGD, rho=0.05, lr=0.1)
    with pytest.warns(UserWarning, match=f"{before.__name__}.*dropped"):
        other.load_state_dict(opt.state_dict())
    assert set(other.variant.memory) == set(after(net.parameters(), torch.optim.SGD, lr=0.1).variant.memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before(net.parameters(), torch.optim.SGD, lr=0.1).load_state_dict(opt.state_dict())
        other.load_state_dict(torch.optim.SGD(net.parameters(), lr=0.1).state_dict())
