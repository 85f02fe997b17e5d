"""Tiny models and Trainers for the tests of the mix-in."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_efficient import SAMArguments, SAMTrainer

METHODS: dict[str, SAMArguments] = {
    "sam": SAMArguments("sam"),
    "asam": SAMArguments("asam", rho=0.5),
    "s2sam": SAMArguments("s2sam"),
    "zosam": SAMArguments("zosam", probe_fraction=0.5),
    "guided": SAMArguments("zosam", guided=True, num_queries=2),
    "looksam": SAMArguments("looksam", reuse_interval=3),
    "msam": SAMArguments("msam"),
}


@functools.cache
def _bert(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=16, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def bert(dropout: float = 0.1) -> Any:
    """A fresh copy of one random model."""
    return copy.deepcopy(_bert(dropout))


def rows(count: int = 48) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (count, 8), generator=generator)
    return [{"input_ids": x, "labels": int(x.sum()) % 3} for x in ids]


def tied_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def causal_rows() -> list[dict[str, Any]]:
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows()]


class Scaled:
    """Before a Trainer: a GradScaler on the CPU, whose first steps overflow."""

    def create_accelerator_and_postprocess(self: Any) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125, backoff_factor=2.0**-30)


def arguments(folder: Path | str, **kwargs: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2,
            "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True,
            **kwargs,
        }
    )  # fmt: skip


def trained(folder: Path | str, method: SAMArguments | None, model: Any = None, **kwargs: Any) -> Any:
    """A Trainer after its training: with a method, or the plain one."""
    trainer = build(folder, method, model, **kwargs)
    trainer.train()
    return trainer


def build(
    folder: Path | str, method: SAMArguments | None, model: Any = None, cls: Any = None, data: Any = None,
    build_kwargs: Any = None, mixin: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    model = bert() if model is None else model
    cls = cls or (Trainer if method is None else SAMTrainer)
    cls = cls if mixin is None else type(cls.__name__, (mixin, cls), {})
    sam = {} if method is None else {"sam_args": method}
    data = rows() if data is None else data
    return cls(model, arguments(folder, **kwargs), train_dataset=data, **sam, **(build_kwargs or {}))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
