"""The mix-in in a stock Trainer: what it must not change, and what it must survive."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainingArguments,
)

from hf_efficient import S2SAM, S2SAMTrainer, SAMArguments, SAMTrainer, SAMTrainerMixin, ZOSAMTrainer
from hf_efficient.optimization.perturbation import Weights
from tests.optimization.trainers import METHODS, arguments, bert, build, rows, same, state, trained


def frozen_bert() -> Any:
    model = bert()
    for p in model.bert.embeddings.parameters():
        p.requires_grad_(False)
    return model


def tied_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def lora_bert() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))


def causal_rows() -> list[dict[str, Any]]:
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows()]


MODES: dict[str, dict[str, Any]] = {
    "simple": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "clipping": {"max_grad_norm": 0.1},
    "bf16": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True},
    "frozen": {"model": frozen_bert},
    "tied": {"model": tied_llama, "data": causal_rows},
    "lora": {"model": lora_bert},
    "weight_decay": {"weight_decay": 0.1, "optim": "adamw_torch"},
    "half": {"model": lambda: bert().bfloat16()},
    "epochs": {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 5},  # a last window of two
}


def methods_for(mode: str) -> list[SAMArguments]:
    """All variants in the simple mode; in the others those whose passes differ in kind."""
    if mode == "simple":
        return list(METHODS.values())
    # 16 bits hold neither the probes of zosam nor the difference of its losses
    return [METHODS[name] for name in (("sam", "s2sam") if mode == "half" else ("sam", "s2sam", "zosam"))]


def options(mode: str) -> dict[str, Any]:
    chosen = dict(MODES[mode])
    for name in ("model", "data"):
        if name in chosen:
            chosen[name] = chosen[name]()
    return chosen


@pytest.mark.parametrize("mode", MODES)
def test_rho_zero_is_the_plain_trainer_to_the_bit(mode: str, tmp_path: Path) -> None:
    plain = trained(tmp_path, None, **options(mode))
    for method in methods_for(mode):
        ours = trained(tmp_path, dataclasses.replace(method, rho=0.0), **options(mode))
        assert same(state(ours.model), state(plain.model)), method.method


@pytest.mark.parametrize("mode", MODES)
def test_training_step_leaves_the_weights_to_the_bit(mode: str, tmp_path: Path) -> None:
    class Watched(SAMTrainer):
        def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            before = state(model)
            loss = super().training_step(model, *args, **kwargs)
            assert same(before, state(model))
            self.watched = getattr(self, "watched", 0) + 1
            return loss

    plain = trained(tmp_path, None, **options(mode))
    for method in methods_for(mode):
        ours = trained(tmp_path, dataclasses.replace(method, rho=method.rho * 4), cls=Watched, **options(mode))
        assert ours.watched >= 4
        assert not same(state(ours.model), state(plain.model)), method.method


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


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["sam", "s2sam", "guided", "looksam"])
def test_an_exception_in_a_step_leaves_the_weights_in_place(
    method: str, error: type[BaseException], tmp_path: Path
) -> None:
    class Failing(SAMTrainer):
        calls = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            loss = super().compute_loss(*args, **kwargs)
            if self.calls == self.fail_at:
                raise error
            return loss

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


class NaNStep(TrainerCallback):
    """Spoils a step's batch from inside of the model."""

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
    settings = dataclasses.replace(METHODS[method], reuse_interval=1)  # whose seeds and intervals count steps
    if method == "zosam":
        settings = dataclasses.replace(settings, guided=True)
    spoiled = trained(
        tmp_path, settings, bert(0.0), data=data, max_steps=5, build_kwargs={"callbacks": [NaNStep(2)]}, **kwargs
    )
    without = trained(tmp_path, settings, bert(0.0), data=data[:8] + data[12:], max_steps=4, **kwargs)
    assert same(state(spoiled.model), state(without.model))


class Killed(BaseException):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("method", ["s2sam", "guided", "looksam"])
def test_resuming_gives_the_uninterrupted_run_to_the_bit(method: str, tmp_path: Path) -> None:
    """Random places (twelve for S2-SAM) of a run with dropout, shuffling, accumulation and a schedule of rho."""
    settings = dataclasses.replace(METHODS[method], rho_schedule="cosine", rho=0.3)
    kwargs: dict[str, Any] = {
        "max_steps": 10, "gradient_accumulation_steps": 2, "save_strategy": "steps", "optim": "adamw_torch",
        "lr_scheduler_type": "cosine", "weight_decay": 0.01, "save_total_limit": 1,
    }  # fmt: skip
    reference = state(trained(tmp_path / "whole", settings, **{**kwargs, "save_strategy": "no"}).model)
    chance = random.Random(0)
    for case in range(12 if method == "s2sam" else 2):
        every, kill = chance.choice([1, 2, 3]), chance.randint(3, 9)
        folder = tmp_path / f"case{case}"
        killed = build(folder, settings, save_steps=every, **kwargs, build_kwargs={"callbacks": [KillAt(kill)]})
        with pytest.raises(Killed):
            killed.train()
        torch.manual_seed(random.randrange(1000))  # nothing may depend on this
        resumed = build(folder, settings, save_steps=every, **kwargs)
        resumed.train(resume_from_checkpoint=True)
        assert same(state(resumed.model), reference), (every, kill)


def test_a_checkpoint_without_memory_warns_and_starts_plainly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, METHODS["s2sam"], max_steps=2, save_strategy="steps", save_steps=2)
    memory = tmp_path / "checkpoint-2" / "sam_memory.safetensors"
    assert memory.exists()
    memory.unlink()
    resumed = build(tmp_path, METHODS["s2sam"], max_steps=3)
    import transformers.utils.logging as logging

    logging.enable_propagation()
    resumed.train(resume_from_checkpoint=True)
    assert "first step is not perturbed" in caplog.text


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


@pytest.mark.parametrize(
    ("method", "which", "passes", "first_moves"),
    [("sam", "first", 1, False), ("sam", "second", 1, True), ("sam", "both", 2, None), ("zosam", "first", 1, True),
     ("s2sam", "second", 1, False)],
)  # fmt: skip
def test_which_pass_updates_batch_norm(
    method: str, which: str, passes: int, first_moves: bool | None, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(8, generator=generator), "labels": i % 3} for i in range(12)]
    kwargs = {"data": data, "max_steps": 1, "per_device_train_batch_size": 12, "train_sampling_strategy": "sequential"}
    settings = SAMArguments(method, rho=1.0, batch_norm_pass=which, num_queries=3)
    model = trained(tmp_path, settings, WithBatchNorm(), **kwargs).model
    assert model.norm.num_batches_tracked == passes
    plain = trained(tmp_path, None, WithBatchNorm(), **kwargs).model
    if first_moves is not None:  # statistics at w are those of the plain Trainer's first step
        assert torch.equal(model.norm.running_mean, plain.norm.running_mean) != first_moves


def test_stock_features_stay(tmp_path: Path) -> None:
    """Evaluation in between, metrics, the best model at the end, early stopping, predict: with unperturbed weights."""
    seen = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args: Any, state_: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
            seen.append(state(model))

    trainer = build(
        tmp_path, METHODS["s2sam"], max_steps=12, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, logging_strategy="steps", logging_steps=1, load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        build_kwargs={
            "eval_dataset": rows(16), "callbacks": [Watch(), EarlyStoppingCallback(2)],
            "compute_metrics": lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        },
    )  # fmt: skip
    trainer.train()
    logged = trainer.state.log_history
    assert any("eval_accuracy" in entry for entry in logged)
    assert all(entry["loss"] > 0 for entry in logged if "loss" in entry)
    best = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    assert same(state(trainer.model), seen[best // 2 - 1])
    assert trainer.predict(rows(16)).predictions.shape == (16, 3)


def test_diagnostics_are_logged_and_true(tmp_path: Path) -> None:
    settings = SAMArguments("s2sam", rho=0.2, rho_schedule="inverse_sqrt", diagnostics_steps=2)
    trainer = trained(tmp_path, settings, logging_strategy="steps", logging_steps=1, max_grad_norm=0.0)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["sam_rho" in entry for entry in logged] == [True, False, True, False]
    third = logged[2]
    assert third["sam_rho"] == pytest.approx(0.2 / 3**0.5)
    assert third["sam_distance"] == pytest.approx(third["sam_rho"], rel=1e-3)
    assert third["sam_gradient_norm"] == pytest.approx(third["grad_norm"], rel=1e-4)
    assert -1 <= third["sam_cosine"] <= 1
    sam = trained(
        tmp_path,
        SAMArguments("sam", rho=1e-4, diagnostics_steps=1),
        bert(0.0),
        logging_strategy="steps",
        logging_steps=1,
    )
    assert sam.state.log_history[0]["sam_cosine"] == pytest.approx(1.0, abs=1e-3)  # along the gradient itself


def test_grad_scaler_skips_and_training_goes_on(tmp_path: Path) -> None:
    class Scaled(SAMTrainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125, backoff_factor=2.0**-30)

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
            tmp_path, method, cls=Scaled, max_steps=20, max_grad_norm=0.0, build_kwargs={"callbacks": [count]}
        )
        trainer.train()
        skipped = count.changed.index(True)
        assert 0 < skipped < 20, method.method
        assert all(count.changed[10:])
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_optimizer_through_the_stock_trainer_equals_the_mixin(tmp_path: Path) -> None:
    keywords = {"base_optimizer": torch.optim.AdamW, "rho": 0.05, "lr": 1e-2, "weight_decay": 0.0}
    for accumulation in (1, 2):
        stock = build(
            tmp_path, None, bert(0.0), gradient_accumulation_steps=accumulation,
            build_kwargs={"optimizer_cls_and_kwargs": (S2SAM, keywords)},
        )  # fmt: skip
        stock.train()
        ours = trained(
            tmp_path, METHODS["s2sam"], bert(0.0), gradient_accumulation_steps=accumulation, optim="adamw_torch"
        )
        for a, b in zip(stock.model.parameters(), ours.model.parameters()):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_the_fixed_method_trainers(tmp_path: Path) -> None:
    for cls, name in ((S2SAMTrainer, "s2sam"), (ZOSAMTrainer, "zosam")):
        short = trained(tmp_path, SAMArguments(rho=0.1), cls=cls)
        long = trained(tmp_path, SAMArguments(name, rho=0.1))
        assert same(state(short.model), state(long.model))
        assert cls(bert(), arguments(tmp_path), train_dataset=rows()).sam_args == SAMArguments(name)
    with pytest.raises(ValueError, match="method='msam' does not fit"):
        S2SAMTrainer(bert(), arguments(tmp_path), sam_args=SAMArguments("msam"))


def test_seq2seq_trainer(tmp_path: Path) -> None:
    class Ours(SAMTrainerMixin, Seq2SeqTrainer):
        pass

    args = Seq2SeqTrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, report_to="none", save_strategy="no")
    trainer = Ours(bert(), args, train_dataset=rows(), sam_args=METHODS["s2sam"])
    assert trainer.train().global_step == 3


def test_new_training_starts_from_nothing(tmp_path: Path) -> None:
    trainer = build(tmp_path, METHODS["s2sam"], build_kwargs={}, max_steps=2)
    trainer.train()
    old = trainer._ascent
    trainer.train()
    assert trainer._ascent is not old


def test_arguments_parse_beside_training_arguments(tmp_path: Path) -> None:
    line = f"--output_dir {tmp_path} --learning_rate 1e-3 --method zosam --rho 0.1 --num_queries 2 --guided".split()
    training, sam = HfArgumentParser((TrainingArguments, SAMArguments)).parse_args_into_dataclasses(line)
    assert (training.learning_rate, sam) == (1e-3, SAMArguments("zosam", rho=0.1, num_queries=2, guided=True))
    names = [{f.name for f in dataclasses.fields(cls)} for cls in (TrainingArguments, SAMArguments)]
    assert not names[0] & names[1]
    assert SAMArguments.from_dict(json.loads(sam.to_json_string())) == sam
    with pytest.raises(ValueError, match=r"Unknown \['rhoo'\]"):
        SAMArguments.from_dict({"rhoo": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "samm"), ("rho", -0.1), ("rho", float("nan")), ("rho_schedule", "step"), ("num_queries", 0),
     ("delta", 0.0), ("probe_fraction", 0.0), ("probe_fraction", 1.5), ("reuse_interval", 0),
     ("batch_norm_pass", "third"),
     ("diagnostics_steps", -1), ("direction_seed", -1)],
)  # fmt: skip
def test_arguments_are_checked(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        SAMArguments(**{field: value})


def test_rho_schedules() -> None:
    at = lambda name, step: SAMArguments(rho=0.4, rho_schedule=name).rho_at(step, 100)
    assert [at("constant", t) for t in (0, 99)] == [0.4, 0.4]
    assert [at("inverse_sqrt", t) for t in (0, 3)] == [0.4, 0.2]
    assert [at("linear", t) for t in (0, 50, 100)] == [0.4, 0.2, 0.0]
    assert at("cosine", 50) == pytest.approx(0.2)


def test_model_card_names_the_method(tmp_path: Path) -> None:
    trainer = trained(tmp_path, SAMArguments("zosam", rho=0.1, num_queries=4))
    trainer.create_model_card(model_name="tiny")
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert card.count("### Sharpness-aware minimization") == 1
    for line in ("- method: zosam", "- rho: 0.1", "- num_queries: 4", "papers/2603.13115", "- hf_efficient"):
        assert line in card
    assert "- learning_rate: 0.01" in card  # the stock card is still there


def test_memory_is_that_of_one_gradient(tmp_path: Path) -> None:
    """Between steps S2-SAM holds the last gradient and nothing else."""
    trainer = trained(tmp_path, METHODS["s2sam"])
    (gradient,) = trainer._ascent.memory.values()
    assert {p.shape for p in gradient} == {p.shape for p in trainer.model.parameters()}
    assert Weights(trainer.model.parameters()).parameters == list(gradient)


@pytest.mark.slow
def test_models_compiled_by_torch_train_the_same(tmp_path: Path) -> None:
    torch._dynamo.config.suppress_errors = False
    for method in ("s2sam", "sam", "zosam"):
        compiled = trained(
            tmp_path, METHODS[method], bert(0.0), torch_compile=True, torch_compile_backend="aot_eager", max_steps=3
        )
        eager = trained(tmp_path, METHODS[method], bert(0.0), max_steps=3)
        for a, b in zip(compiled.model.parameters(), eager.model.parameters()):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


KILLED = """
import os, sys
from transformers import TrainerCallback
from tests.optimization.trainers import METHODS, build

class Kill(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == int(sys.argv[2]):
            os._exit(9)

build(sys.argv[1], METHODS["s2sam"], max_steps=8, save_strategy="steps", save_steps=1, gradient_accumulation_steps=2,
      build_kwargs={"callbacks": [Kill()]}).train()
"""


@pytest.mark.slow
def test_a_process_that_was_killed_is_resumed_to_the_bit(tmp_path: Path, repository: Path) -> None:
    kwargs: dict[str, Any] = {"max_steps": 8, "gradient_accumulation_steps": 2}
    reference = state(trained(tmp_path / "whole", METHODS["s2sam"], **kwargs).model)
    for step in random.Random(1).sample(range(2, 8), 3):
        folder = tmp_path / str(step)
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(step)], cwd=repository, check=False)
        assert done.returncode == 9
        resumed = build(folder, METHODS["s2sam"], **kwargs)
        resumed.train(resume_from_checkpoint=True)
        assert same(state(resumed.model), reference)
