"""A method that does not act says so: in Trainers, where the step is the Trainer's own."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_efficient import S2SAM, S2SAMTrainer, SAMArguments, SAMTrainer, SAMTrainerMixin
from hf_efficient.methods import OPTIMIZATION
from tests.optimization.training.trainers import METHODS, arguments, bert, build, rows, same, state, trained


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    import transformers.utils.logging as logging

    logging.enable_propagation()
    return caplog


def test_the_mix_in_after_its_trainer_is_refused_when_the_class_is_made() -> None:
    class Own:  # other mix-ins may stand where they like
        pass

    class Fine(Own, SAMTrainerMixin, Trainer):
        pass

    class Logging(Trainer):
        pass

    class FineToo(Logging, SAMTrainer):  # what Logging does not do itself comes from SAMTrainer
        pass

    with pytest.raises(TypeError, match=r"class Wrong\(SAMTrainerMixin, Trainer\)"):

        class Wrong(Trainer, SAMTrainerMixin):
            pass

    class Base(Trainer):
        pass

    with pytest.raises(TypeError, match=r"class Wrong\(SAMTrainerMixin, Base\)"):
        type("Wrong", (Base, Own, SAMTrainerMixin), {})


@pytest.mark.parametrize("name", ["galore_adamw_layerwise", "galore_adafactor_layerwise", "apollo_adamw_layerwise",
                                  "galore_adamw_8bit_layerwise", "lomo", "adalomo"])  # fmt: skip
def test_optimizers_that_step_inside_backward_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"optim='{name}'.* inside backward") as error:
        S2SAMTrainer(bert(), arguments(tmp_path, optim=name, optim_target_modules="all-linear"), train_dataset=rows())
    assert ('optim="galore_adamw"' in str(error.value)) == (name == "galore_adamw_layerwise")
    rho = SAMArguments(rho=0)  # plain training may use them
    S2SAMTrainer(bert(), arguments(tmp_path, optim=name, optim_target_modules="all-linear"), sam_args=rho)


class InBackward:
    """torch's own recipe: an optimizer for each parameter, which steps as soon as its gradient is there."""

    forgets = True

    def create_optimizer(self: Any, *args: Any) -> Any:
        each = {p: torch.optim.SGD([p], lr=0.1) for p in self.model.parameters()}

        def hook(p: Any) -> None:
            each[p].step()
            if self.forgets:
                each[p].zero_grad()

        for p in self.model.parameters():
            p.register_post_accumulate_grad_hook(hook)
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        return self.optimizer


class KeepsGradients(InBackward):
    forgets = False


class Fused(InBackward):
    """As LOMO does it: no optimizer steps, the gradient is used and thrown away in a hook."""

    def create_optimizer(self: Any, *args: Any) -> Any:
        def hook(p: Any) -> None:
            p.data.add_(p.grad, alpha=-0.1)
            p.grad = None

        for p in self.model.parameters():
            p.register_post_accumulate_grad_hook(hook)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


class StepsInTrainingStep:
    """Another Trainer's own step, which does everything."""

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.optimizer.step()
        return loss


class Foreign:
    """An optimizer of other weights than the model's."""

    def create_optimizer(self: Any, *args: Any) -> Any:
        self.optimizer = torch.optim.SGD(copy.deepcopy(self.model).parameters(), lr=0.1)
        return self.optimizer


class Doubled:
    """One of our own optimizers below one of our own trainers."""

    def create_optimizer(self: Any, *args: Any) -> Any:
        self.optimizer = S2SAM(self.model.parameters(), torch.optim.SGD, lr=0.1)
        return self.optimizer


@pytest.mark.parametrize("method", ["s2sam", "zosam"])
@pytest.mark.parametrize(
    ("other", "message"),
    [(InBackward, "none of the model's"), (KeepsGradients, "none of the model's"), (Fused, "no gradient"),
     (Foreign, "none of the model's"), (Doubled, "S2SAM perturbs the weights itself")],
)  # fmt: skip
def test_optimizers_that_cannot_work_stop_the_first_step(method: str, other: Any, message: str, tmp_path: Path) -> None:
    trainer = build(tmp_path, METHODS[method], bert(0.0), mixin=other)
    before = state(trainer.model)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    if other is not Fused:  # whose hook has stepped by the time it can be noticed
        assert same(state(trainer.model), before)


@pytest.mark.parametrize("method", ["s2sam", "sam", "zosam"])
def test_a_step_inside_of_the_perturbation_is_refused(method: str, tmp_path: Path) -> None:
    class Inner(StepsInTrainingStep, Trainer):
        pass

    class Ours(SAMTrainerMixin, Inner):
        pass

    trainer = build(tmp_path, METHODS[method], bert(0.0), cls=Ours)
    before = state(trainer.model)
    with pytest.raises(ValueError, match=r"step\(\) while the weights are perturbed"):
        trainer.train()
    assert same(state(trainer.model), before)


@pytest.mark.parametrize("keeps_gradients", [True, False])
def test_a_hook_that_steps_inside_backward_is_refused(keeps_gradients: bool, tmp_path: Path) -> None:
    """The same recipe beside an optimizer that does hold the weights."""

    class Hooked(SAMTrainer):
        def create_optimizer(self, *args: Any) -> Any:
            InBackward.create_optimizer(self)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
            return self.optimizer

        forgets = keeps_gradients

    for method in ("s2sam", "zosam"):
        trainer = build(tmp_path, METHODS[method], bert(0.0), cls=Hooked)
        before = state(trainer.model)
        with pytest.raises(ValueError, match="inside backward"):
            trainer.train()
        assert same(state(trainer.model), before)


def test_another_optimizer_may_step_inside(tmp_path: Path) -> None:
    class Critic(SAMTrainer):
        critic = nn.Linear(1, 1)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            own = torch.optim.SGD(self.critic.parameters(), lr=0.1)
            with torch.enable_grad():
                self.critic(torch.ones(1)).sum().backward()
            own.step()
            return super().compute_loss(*args, **kwargs)

    before = Critic.critic.weight.detach().clone()
    trainer = trained(tmp_path, METHODS["sam"], cls=Critic)
    assert trainer.state.global_step == trainer.state.max_steps
    assert not torch.equal(Critic.critic.weight, before)  # it did step


def test_a_training_step_without_ours_is_refused(tmp_path: Path) -> None:
    class Own(SAMTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            self.accelerator.backward(loss)
            return loss.detach()

    trainer = build(tmp_path, METHODS["s2sam"], cls=Own)
    before = state(trainer.model)
    with pytest.raises(ValueError, match=r"Own\.training_step.*super\(\)\.training_step"):
        trainer.train()
    assert same(state(trainer.model), before)
    trained(tmp_path, SAMArguments("s2sam", rho=0), cls=Own)


def test_a_loss_that_runs_backward_itself_is_refused_by_probes(tmp_path: Path) -> None:
    class Own(SAMTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            with torch.enable_grad():
                loss = super().compute_loss(*args, **kwargs)
                loss.backward()
            return loss.detach().requires_grad_()

    trained(tmp_path, METHODS["s2sam"], cls=Own)  # its gradients are there, and perturbed
    for method in ("zosam", "guided"):
        with pytest.raises(ValueError, match="compute_loss runs backward"):
            trained(tmp_path, METHODS[method], cls=Own)


def test_a_method_that_moves_nothing_warns_once(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    class Flat(SAMTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * 0

    for method in ("sam", "s2sam", "looksam", "msam"):
        said.clear()
        trained(tmp_path, METHODS[method], cls=Flat)
        assert said.text.count("moved no weight") == 1, method
    said.clear()
    for method in ("s2sam", "looksam", "msam"):
        trained(tmp_path, METHODS[method], max_steps=5)
    trained(tmp_path, SAMArguments("s2sam", rho_schedule="linear"), max_steps=6)
    assert "moved no weight" not in said.text


def test_probes_that_cannot_tell_two_losses_apart_warn_once(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    class Rough(SAMTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss + (loss.detach().round() - loss.detach())  # two losses nearby are one number

    trained(tmp_path, SAMArguments("zosam", delta=1e-4, num_queries=2), cls=Rough, max_steps=6)
    assert said.text.count("losses on both sides") == 1


class Normed(nn.Module):
    """With dropout and BatchNorm, so that every setting has something to act on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_what_the_table_says_is_read_changes_the_training(tmp_path: Path) -> None:
    """The other half of the refusal: no setting that is accepted is without effect."""
    other: dict[str, Any] = {
        "num_queries": 3, "delta": 0.1, "probe_fraction": 0.5, "probe_dropout": False, "guided": True,
        "direction_seed": 1, "reuse_interval": 2, "reuse_weight": 0.1, "batch_norm_pass": "both",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(8, generator=generator), "labels": i % 3} for i in range(24)]

    def ends(settings: SAMArguments) -> dict[str, Any]:
        return state(trained(tmp_path, settings, Normed(), data=data, max_steps=3).model)

    for method in OPTIMIZATION.methods:
        base: dict[str, Any] = {"num_queries": 2} if method.name == "zosam" else {}  # one direction has but two signs
        plain = ends(SAMArguments(method.name, rho=0.5, **base))
        for setting in sorted({*method.reads} - {"perturb"}):  # which is for models with adapters: test_merged.py
            changed = ends(SAMArguments(method.name, rho=0.5, **{**base, setting: other[setting]}))
            assert not same(changed, plain), (method.name, setting)
