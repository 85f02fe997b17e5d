"""What the stock Trainers do is still done: evaluation, metrics, cards, predictions, other optimizers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from hf_efficient import S2SAM, S2SAMTrainer, SAMArguments, SAMTrainer, SAMTrainerMixin, ZOSAMTrainer
from hf_efficient.optimization.engine.perturbation import Weights
from tests.optimization.training.trainers import METHODS, arguments, bert, build, rows, same, state, trained


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


def test_diagnostics_of_plain_training_say_so(tmp_path: Path) -> None:
    plain = SAMArguments("sam", rho=0.0, diagnostics_steps=1)
    trainer = trained(tmp_path, plain, logging_strategy="steps", logging_steps=1)
    assert [entry["sam_rho"] for entry in trainer.state.log_history if "loss" in entry] == [0.0] * 4


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
    for method in ("sam", "msam"):  # the default's name is a method like any other
        with pytest.raises(ValueError, match=f"method='{method}' does not fit S2SAMTrainer, which is 's2sam'"):
            S2SAMTrainer(bert(), arguments(tmp_path), sam_args=SAMArguments(method))
    with pytest.raises(ValueError, match=r"num_queries=9 is not read by method='s2sam', only by 'zosam'"):
        S2SAMTrainer(bert(), arguments(tmp_path), sam_args=SAMArguments(num_queries=9))
    ZOSAMTrainer(bert(), arguments(tmp_path), sam_args=SAMArguments(num_queries=9, guided=True))
    with pytest.raises(TypeError, match=r"sam_args=\{'rho': 0.1\}; expected SAMArguments"):
        S2SAMTrainer(bert(), arguments(tmp_path), sam_args={"rho": 0.1})  # type: ignore[arg-type]


def test_without_a_method_the_mix_in_and_its_trainer_are_sam(tmp_path: Path) -> None:
    class Mixed(SAMTrainerMixin, Trainer):
        pass

    sam = trained(tmp_path, SAMArguments("sam", rho=0.1))
    for cls in (Mixed, SAMTrainer):
        assert cls(bert(), arguments(tmp_path), train_dataset=rows()).sam_args == SAMArguments("sam")
        unsaid = trained(tmp_path, SAMArguments(rho=0.1), cls=cls)
        assert same(state(unsaid.model), state(sam.model))
        unsaid.create_model_card(model_name="tiny")
        card = (tmp_path / "README.md").read_text()
        assert "- method: sam\n" in card
        assert "- sam\n" in card[: card.index("---", 4)]  # the tag


def test_seq2seq_trainer(tmp_path: Path) -> None:
    class Ours(SAMTrainerMixin, Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
    )  # fmt: skip
    data = [{"input_ids": row["input_ids"], "labels": row["input_ids"][:4]} for row in rows(12)]
    args = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=3, use_cpu=True, report_to="none", eval_strategy="steps", eval_steps=1,
        predict_with_generate=True, disable_tqdm=True,
    )  # fmt: skip
    generated_at = []

    class Generating(T5ForConditionalGeneration):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            generated_at.append(state(self))
            return super().generate(*args, **kwargs)

    trainer = Ours(
        Generating(config), args, train_dataset=data, eval_dataset=data[:4], sam_args=METHODS["s2sam"],
        compute_metrics=lambda p: {"length": float(p.predictions.shape[1])},
    )  # fmt: skip
    assert trainer.train().global_step == 3
    assert trainer.predict(data[:4]).predictions.shape == (4, 20)
    assert same(generated_at[-1], state(trainer.model))
    stored = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(torch.equal(generated_at[-1][name], value) for name, value in stored.items())


def test_new_training_starts_from_nothing(tmp_path: Path) -> None:
    trainer = build(tmp_path, METHODS["s2sam"], build_kwargs={}, max_steps=2)
    trainer.train()
    old = trainer._variant
    trainer.train()
    assert trainer._variant is not old


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
    (gradient,) = trainer._variant.memory.values()
    assert {p.shape for p in gradient} == {p.shape for p in trainer.model.parameters()}
    assert Weights(trainer.model.parameters()).parameters == list(gradient)
