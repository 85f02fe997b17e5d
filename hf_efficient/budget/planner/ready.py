"""Rows, metrics and labels for what the command line plans and trains: questions about pictures, or lines of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    answer_questions,
    exact_match,
    load_evaluation_set,
    on_device,
)

from .rows import inputs_of_rows

Rows = Sequence[dict[str, Any]]
LONGEST_TEXT = 512  # tokens of a line that are read
IGNORED = -100


def rows_of_pictures(folder: str | os.PathLike[str] | None, limit: int) -> Rows:
    """Questions about the pictures of a folder (see `load_evaluation_set`); None: of the shipped ones."""
    scenes = load_evaluation_set(EVALUATION_SET if folder is None else folder)
    asked = [(scene, q) for scene in scenes for q in scene.questions][:limit]
    return [{"image": s.image, "question": q.question, "answer": q.answer, "family": q.family} for s, q in asked]


def rows_of_text(path: str | os.PathLike[str], limit: int) -> Rows:
    """The lines of a file that are not empty.

    Raises:
        ValueError: there is none.
        OSError: it cannot be read.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{os.fspath(path)!r} has no text; expected a text a line.")
    return [{"text": line} for line in lines[:limit]]


def exact_answers(model: Any, processor: Any, rows: Rows) -> float:
    """Share of questions that are answered word for word."""
    given = answer_questions(model, processor, [r["image"] for r in rows], [r["question"] for r in rows])
    return sum(exact_match(given, [r["answer"] for r in rows])) / len(rows)


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, rows: Rows) -> float:
    """Mean log-probability, in nats, of a token given those before it; larger is better, 0 is certainty."""
    total, count = 0.0, 0
    for start in range(0, len(rows), 8):
        batch = on_device(model, labelled(tokenizer, rows[start : start + 8]))
        tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        if tokens:
            total -= float(model(**batch).loss) * tokens
            count += tokens
    return total / max(1, count)


def labelled(processor: Any, rows: Rows) -> dict[str, Tensor]:
    """A batch with labels: the answers of questions, all tokens of texts; padding has none.

    Args:
        processor: of the model, with a token pruner where there is one; or a tokenizer.
        rows: with "image", "question" and "answer", or with "text".
    """
    if "text" in rows[0]:
        batch = dict(processor([r["text"] for r in rows], padding=True, truncation=True, max_length=LONGEST_TEXT,
                               return_tensors="pt"))  # fmt: skip
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return batch
    asked = [f"{processor.image_token} {row['question']}" for row in rows]
    end = processor.tokenizer.eos_token or ""
    told = [f"{question} {row['answer']}{end}" for question, row in zip(asked, rows, strict=True)]
    images = [row["image"] for row in rows]
    batch = dict(processor(images=images, text=told, padding=True, padding_side="right", return_tensors="pt"))
    lengths = processor(images=images, text=asked, padding=True, padding_side="right", return_tensors="pt")
    places = torch.arange(batch["input_ids"].shape[1])
    question = places < lengths["attention_mask"].sum(1, keepdim=True)
    batch["labels"] = batch["input_ids"].masked_fill(question | (batch["attention_mask"] == 0), IGNORED)
    return batch


def text_inputs(tokenizer: Any, rows: Rows) -> dict[str, Tensor]:
    """Inputs of a batch of texts, cut to `LONGEST_TEXT` tokens."""
    return {name: value for name, value in labelled(tokenizer, rows).items() if name != "labels"}


INPUTS = {True: inputs_of_rows, False: text_inputs}  # whether the model sees
METRICS = {True: exact_answers, False: log_likelihood}
