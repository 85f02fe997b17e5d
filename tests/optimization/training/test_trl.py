"""In TRL: the figures that SFTTrainer counts inside `compute_loss` stay those of one pass."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

from hf_efficient import S2SAM, SAMArguments, SAMTrainerMixin
from hf_efficient.compat.trl import generates_in_training_step
from tests.optimization.training.trainers import METHODS, build

trl: Any = pytest.importorskip("trl")


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *(f"w{n}" for n in range(40))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


def sft(folder: Path, method: SAMArguments | None, accumulation: int = 2) -> Any:
    from datasets import Dataset

    class Ours(SAMTrainerMixin, trl.SFTTrainer):
        pass

    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    texts = [" ".join(f"w{(i * j) % 40}" for j in range(1, 4 + i % 5)) for i in range(24)]
    args = trl.SFTConfig(
        str(folder), max_steps=4, per_device_train_batch_size=6 // accumulation, logging_steps=1,
        gradient_accumulation_steps=accumulation,
        use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    kwargs = {"train_dataset": Dataset.from_dict({"text": texts}), "processing_class": tokenizer()}
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    trainer = trl.SFTTrainer(model, args, **kwargs) if method is None else Ours(model, args, sam_args=method, **kwargs)
    trainer.train()
    return trainer


def counted(trainer: Any) -> list[float]:
    return [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]


def test_tokens_are_counted_once_whatever_the_method(tmp_path: Path) -> None:
    stock = sft(tmp_path, None)
    plain = counted(stock)
    assert len(plain) == 4
    whole = sft(tmp_path, SAMArguments("zosam"), accumulation=1)  # one of whose probes is the step's own pass
    assert counted(whole) == counted(sft(tmp_path, None, accumulation=1))
    for method in ("sam", "zosam", "s2sam", "guided", "looksam", "msam"):
        ours = sft(tmp_path, METHODS[method])
        assert counted(ours) == plain, method
        # at the same weights the first pass has the same accuracy, which no further pass is averaged into
        if method not in ("zosam", "guided"):
            assert ours.state.log_history[0]["mean_token_accuracy"] == stock.state.log_history[0]["mean_token_accuracy"]


def test_card_of_trl_names_the_method(tmp_path: Path) -> None:
    trainer = sft(tmp_path, METHODS["s2sam"])
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "### Sharpness-aware minimization" in card
    assert "- method: s2sam" in card


def test_trl_parser(tmp_path: Path) -> None:
    line = ["--output_dir", str(tmp_path), "--method", "s2sam", "--rho", "0.1", "--bf16", "false"]
    config, sam = trl.TrlParser((trl.SFTConfig, SAMArguments)).parse_args_and_config(line)
    assert sam == SAMArguments("s2sam", rho=0.1)
    assert SAMArguments.from_dict(json.loads(sam.to_json_string())) == sam
    assert config.output_dir == str(tmp_path)


@pytest.mark.parametrize(
    "trainer", ["GRPOTrainer", "experimental.gkd.GKDTrainer", "experimental.online_dpo.OnlineDPOTrainer"]
)
def test_trainers_that_generate_while_weights_are_perturbed_are_known(trainer: str) -> None:
    package, _, name = trainer.rpartition(".")
    cls = getattr(importlib.import_module(f"trl.{package}" if package else "trl"), name)
    assert generates_in_training_step(object.__new__(type("Mine", (cls,), {})))


@pytest.mark.parametrize("trainer", ["SFTTrainer", "DPOTrainer", "RewardTrainer"])
def test_others_are_not_taken_for_them(trainer: str) -> None:
    assert not generates_in_training_step(object.__new__(getattr(trl, trainer)))


def test_an_optimizer_refuses_such_a_trainer(tmp_path: Path) -> None:
    class Mine(Trainer):
        _buffered_inputs = None

    chosen = (S2SAM, {"base_optimizer": torch.optim.SGD, "lr": 0.1})
    trainer = build(tmp_path, None, cls=Mine, build_kwargs={"optimizer_cls_and_kwargs": chosen})
    with pytest.raises(ValueError, match=r"Mine generates its data inside the training step.* without S2SAM"):
        trainer.train()
