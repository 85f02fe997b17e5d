"""Single steps of the mix-in: accumulated, broken off, not finite, in 16 bits, with a scaler, with BatchNorm."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    TrainerCallback,
)

from hf_efficient import SAMArguments, SAMTrainer
from hf_efficient.optimization.engine import exchange
from hf_efficient.optimization.training.checks import refuse_trainer
from tests.optimization.training.trainers import (
    METHODS,
    Scaled,
    bert,
    build,
    causal_rows,
    rows,
    same,
    state,
    tied_llama,
    trained,
)


@pytest.mark.parametrize("method", ["sam", "s2sam", "zosam"])
def test_accumulation_is_one_large_batch(method: str, tmp_path: Path) -> None:
    """With a model that divides its loss by the tokens of the whole batch, as language models do."""
    settings = dataclasses.replace(METHODS[method], probe_fraction=1.0)
    kwargs = {"data": causal_rows(), "optim": "sgd", "train_sampling_strategy": "sequential"}
    whole = trained(tmp_path, settings, tied_llama().double(), **kwargs, per_device_train_batch_size=8)
    parts = trained(
        tmp_path,
        settings,
        tied_llama().double(),
        **kwargs,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    for a, b in zip(whole.model.parameters(), parts.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)


def test_the_logged_loss_is_that_of_the_plain_trainer(tmp_path: Path) -> None:
    """At the same weights: of all micro-batches of the first step together."""
    kwargs = {"gradient_accumulation_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
    plain = trained(tmp_path, None, bert(0.0), **kwargs).state.log_history[0]["loss"]
    for name, method in METHODS.items():
        ours = trained(tmp_path, method, bert(0.0), **kwargs).state.log_history[0]["loss"]
        assert ours == pytest.approx(plain, rel=1e-5) or name in ("zosam", "guided"), name  # whose one pass is at w + ε
        assert ours == pytest.approx(plain, rel=0.1), name


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["sam", "s2sam", "zosam", "guided", "looksam"])
def test_an_exception_in_a_step_leaves_the_weights_in_place(
    method: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LEAST", 0)  # these weights are small; they too lie elsewhere for the step

    class Failing(SAMTrainer):
        calls = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            loss = super().compute_loss(*args, **kwargs)
            if self.calls == self.fail_at:
                there.append(state(self.model))
                raise error
            return loss

    there: list[dict[str, Any]] = []
    elsewhere = []
    for fail_at in (4, 5, 6):
        trainer = build(tmp_path, METHODS[method], cls=Failing, max_steps=8)
        trainer.fail_at = fail_at
        before: dict[str, Any] = {}

        class Remember(TrainerCallback):
            def on_step_begin(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
                before.update(state(model))

        trainer.add_callback(Remember())
        with pytest.raises(error):
            trainer.train()
        assert before
        assert same(before, state(trainer.model))
        elsewhere.append(not same(before, there[-1]))
    assert any(elsewhere)


class NaNStep(TrainerCallback):
    """Spoils a step's batch from inside the model."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.hook: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            self.hook = model.bert.embeddings.register_forward_hook(lambda module, args, out: out * float("nan"))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_is_not_finite_changes_nothing(method: str, tmp_path: Path) -> None:
    """Steps: five batches, the third of them spoiled, against four batches without it."""
    data = rows(20)
    kwargs = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", "optim": "adamw_torch"}
    own: dict[str, Any] = {
        "looksam": {"reuse_interval": 1},
        "zosam": {"guided": True},
    }  # whose seeds and intervals count steps
    settings = dataclasses.replace(METHODS[method], **own.get(method, {}))
    spoiled = trained(
        tmp_path, settings, bert(0.0), data=data, max_steps=5, build_kwargs={"callbacks": [NaNStep(2)]}, **kwargs
    )
    without = trained(tmp_path, settings, bert(0.0), data=data[:8] + data[12:], max_steps=4, **kwargs)
    assert same(state(spoiled.model), state(without.model))


def test_sixteen_bit_weights_warn_and_upcast_helps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import transformers.utils.logging as logging

    logging.enable_propagation()
    settings = SAMArguments("s2sam", rho=1e-3)
    trained(tmp_path, settings, bert().bfloat16())
    assert caplog.text.count("16-bit weights moved by") == 1
    caplog.clear()
    upcast = trained(tmp_path, dataclasses.replace(settings, upcast=True), bert().bfloat16(), bf16=True)
    assert "16-bit" not in caplog.text
    assert all(p.dtype == torch.float32 for p in upcast.model.parameters())


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        logits = self.last(torch.relu(self.norm(self.first(x))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_forgets_a_step_that_is_not_finite(method: str, tmp_path: Path) -> None:
    data = [{"x": torch.full((8,), float(i % 5)), "labels": i % 3} for i in range(12)]
    data[3]["x"] = torch.full((8,), float("inf"))
    settings = METHODS[method]
    if settings.method in ("sam", "asam", "looksam"):  # which have two passes
        settings = dataclasses.replace(settings, batch_norm_pass="both")
    kwargs = {"optim": "adamw_torch", "train_sampling_strategy": "sequential"}
    model = trained(tmp_path, settings, WithBatchNorm(), data=data, max_steps=1, **kwargs).model
    assert same(state(model), state(WithBatchNorm()))


@pytest.mark.parametrize(
    ("method", "which", "passes", "first_moves"),
    [("sam", "first", 1, False), ("sam", "second", 1, True), ("sam", "both", 2, None), ("zosam", None, 1, True),
     ("s2sam", None, 1, False)],
)  # fmt: skip
def test_which_pass_updates_batch_norm(
    method: str, which: str | None, passes: int, first_moves: bool | None, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(8, generator=generator), "labels": i % 3} for i in range(12)]
    kwargs = {"data": data, "max_steps": 1, "per_device_train_batch_size": 12, "train_sampling_strategy": "sequential"}
    own: dict[str, Any] = {"num_queries": 3} if method == "zosam" else {}
    settings = SAMArguments(method, rho=1.0, **(own if which is None else {"batch_norm_pass": which}))
    model = trained(tmp_path, settings, WithBatchNorm(), **kwargs).model
    assert model.norm.num_batches_tracked == passes
    plain = trained(tmp_path, None, WithBatchNorm(), **kwargs).model
    if first_moves is not None:  # statistics at w are those of the plain Trainer's first step
        assert torch.equal(model.norm.running_mean, plain.norm.running_mean) != first_moves


def test_grad_scaler_skips_and_training_goes_on(tmp_path: Path) -> None:
    class Count(TrainerCallback):
        def __init__(self) -> None:
            self.changed: list[bool] = []
            self.before: Any = None

        def on_step_begin(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
            self.before = state(model)

        def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
            self.changed.append(not same(self.before, state(model)))

    for method in METHODS.values():
        count = Count()
        count.changed = []
        trainer = build(
            tmp_path, method, mixin=Scaled, max_steps=20, max_grad_norm=0.0, build_kwargs={"callbacks": [count]}
        )
        trainer.train()
        skipped = count.changed.index(True)
        assert 0 < skipped < 20, method.method
        assert all(count.changed[10:])
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


class Strict(WithBatchNorm):
    """Notes which dropout masks and which way of normalising each forward pass met."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.seen: list[tuple[bool, bool, float]] = []

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        dropped = self.drop(torch.ones(64))
        self.seen.append((torch.is_grad_enabled(), self.norm.training, float((dropped == 0).float().mean())))
        return super().forward(x, labels)


@pytest.mark.parametrize("with_masks", [True, False])
def test_probes_share_the_masks_of_the_step_or_have_none(with_masks: bool, tmp_path: Path) -> None:
    data = [{"x": torch.full((8,), float(i % 5)), "labels": i % 3} for i in range(12)]
    settings = SAMArguments("zosam", num_queries=2, probe_dropout=with_masks)
    model = trained(tmp_path, settings, Strict(), data=data, max_steps=1).model
    *probes, last = model.seen
    assert [grad for grad, _, _ in model.seen] == [False] * 4 + [True]
    assert all(normalises for _, normalises, _ in model.seen)
    assert 0.2 < last[2] < 0.8
    assert {dropped for _, _, dropped in probes} == {last[2] if with_masks else 0.0}
    assert model.drop.training


def test_what_cannot_work_is_refused_with_a_way_out(tmp_path: Path) -> None:
    def trainer_with(**changes: Any) -> type[SAMTrainer]:
        class Changed(SAMTrainer):
            def create_accelerator_and_postprocess(self) -> None:
                super().create_accelerator_and_postprocess()
                for name, value in changes.items():
                    setattr(self, name, value)

        return Changed

    with pytest.raises(ValueError, match="use DDP or FSDP2"):
        build(tmp_path, METHODS["sam"], cls=trainer_with(is_deepspeed_enabled=True))
    fsdp1 = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1)))
    with pytest.raises(ValueError, match='"version": 2'):
        refuse_trainer(SimpleNamespace(is_deepspeed_enabled=False, is_fsdp_enabled=True, accelerator=fsdp1))
    with pytest.raises(ValueError, match="without SAMTrainerMixin"):
        build(tmp_path, METHODS["s2sam"], cls=trainer_with(_buffered_inputs=None))
