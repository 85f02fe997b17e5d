"""What plans are compared on: two vision-language models and a text classifier; rows to choose on, rows to test on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.models.minilm_top import MiniLMTop, hidden_states, through
from benchmarks.models.photo_vlm import load_photo_vlm
from benchmarks.representation.grading import scenes_of
from hf_efficient.budget.planner.rows import inputs_of_rows
from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    Scene,
    answer_questions,
    exact_match,
    load_vlm,
)

Rows = Sequence[dict[str, Any]]
TEXT_STEPS, TEXT_BATCH, TEXT_RATE = 300, 16, 1e-3


@dataclass(frozen=True)
class Instrument:
    """A model, and rows for it.

    Args:
        model: trained, in evaluation mode.
        processor: of it; None where rows are tensors.
        validation: rows on which plans are chosen.
        test: rows on which they are compared.
    """

    model: Any
    processor: Any
    validation: Rows
    test: Rows

    def hits(self, model: Any, processor: Any, rows: Rows) -> list[bool]:
        """Which rows are answered rightly."""
        if processor is None:
            with torch.no_grad():
                parts = [model(**batch_of(None, rows[i : i + 100])).logits for i in range(0, len(rows), 100)]
            return [int(a) == row["label"] for a, row in zip(torch.cat(parts).argmax(1), rows, strict=True)]
        given = answer_questions(model, processor, [r["image"] for r in rows], [r["question"] for r in rows])
        return exact_match(given, [r["answer"] for r in rows])

    def accuracy(self, model: Any, processor: Any, rows: Rows) -> float:
        """Share of rows that are answered rightly."""
        hits = self.hits(model, processor, rows)
        return sum(hits) / len(hits)


def batch_of(processor: Any, rows: Rows) -> dict[str, Tensor]:
    """Inputs of a model, without labels."""
    return inputs_of_rows(processor, rows) if processor is not None else {"x": torch.stack([r["x"] for r in rows])}


def rows_of(scenes: Sequence[Scene], limit: int) -> Rows:
    """Questions about scenes, those of a scene after those of the one before."""
    asked = [(scene, question) for scene in scenes for question in scene.questions][:limit]
    return [{"image": s.image, "question": q.question, "answer": q.answer, "scene": s.name} for s, q in asked]


def rows_around(scenes: Sequence[Scene], limit: int) -> Rows:
    """Questions about as many scenes as there are: one of each, then the next of each, not the same of all."""
    rounds = range(max(len(scene.questions) for scene in scenes))
    asked = [(s, s.questions[(i + r) % len(s.questions)]) for r in rounds for i, s in enumerate(scenes)
             if r < len(s.questions)][:limit]  # fmt: skip
    return [{"image": s.image, "question": q.question, "answer": q.answer, "scene": s.photograph or s.name}
            for s, q in asked]  # fmt: skip


def tiny(seed: int, sets: Path, validation: int, test: int) -> Instrument:
    """The shipped VLM: 144 tokens. A seed draws the scenes that plans are chosen on, and weights are calibrated on."""
    model, processor = load_vlm()
    chosen_on = rows_of(scenes_of(f"standard:{2027 + seed}", -(-validation // 5)), validation)
    return Instrument(model, processor, chosen_on, rows_of(scenes_of(str(EVALUATION_SET)), test))


def photo(seed: int, sets: Path, validation: int, test: int) -> Instrument:
    """The VLM behind DINOv2: 256 tokens of a photograph. `sets` holds what `make_photo_vlm_evaluation` wrote.

    Seeds 0 and 1 are its two trainings; 2 and 3 are these again with other rows that plans are chosen on and weights
    calibrated on, and so on.
    """
    model, processor = load_photo_vlm(seed % 2)
    place = seed // 2 * validation
    chosen_on = rows_around(scenes_of(str(sets / "photo_validation")), place + validation)[place:]
    if len(chosen_on) < validation:
        raise SystemExit(f"photo_validation has no rows {place} to {place + validation}; take fewer, or a lower seed.")
    return Instrument(model, processor, chosen_on, rows_around(scenes_of(str(sets / "photo_test")), test))


def text(seed: int, sets: Path, validation: int, test: int) -> Instrument:
    """MiniLM's top two layers, trained on the twenty newsgroups; the layers below have been run once."""
    x, y, x_test, y_test = hidden_states("newsgroups")
    held = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert validation <= HELD_BACK
    network = trained_top(seed, held)
    rows = [[{"x": a, "label": int(b)} for a, b in zip(x[held[:validation]], y[held[:validation]], strict=True)],
            [{"x": a, "label": int(b)} for a, b in zip(x_test[:test], y_test[:test], strict=True)]]  # fmt: skip
    return Instrument(network, None, *rows)


INSTRUMENTS = {"text": text, "tiny": tiny, "photo": photo}
HELD_BACK = 1000


class TopClassifier(PreTrainedModel):
    """`MiniLMTop` as a model that is saved and loaded as all others are."""

    config_class = BertConfig
    main_input_name = "x"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        made = MiniLMTop(config.num_labels)
        self.layers, self.head = nn.ModuleList(made.layers), made.head
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All weights are MiniLM's, or trained."""

    def get_output_embeddings(self) -> nn.Module:
        """The head, which quantization leaves as it is."""
        return self.head

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """(B, T, 1 + 384) and classes (B,), to a loss and logits (B, classes)."""
        for layer in self.layers:
            x = through(layer, x)
        there, hidden = x[..., :1], x[..., 1:]
        logits = self.head((hidden * there).sum(1) / there.sum(1))
        return SequenceClassifierOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


@functools.cache
def text_config() -> BertConfig:
    """MiniLM's, with twenty classes."""
    config = MiniLMTop(20).layers[0].attention.self.config
    return BertConfig.from_dict({**config.to_dict(), "num_labels": 20})


def trained_top(seed: int, held: Tensor) -> TopClassifier:
    """Train it on all texts but the first `HELD_BACK` of `held`."""
    x, y, _, _ = hidden_states("newsgroups")
    torch.manual_seed(seed)
    network, learned = TopClassifier(text_config()), held[HELD_BACK:]
    optimizer = torch.optim.Adam(network.parameters(), TEXT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TEXT_STEPS)
    network.train()
    for _ in range(TEXT_STEPS):
        batch = learned[torch.randint(len(learned), (TEXT_BATCH,))]
        network(x[batch], y[batch]).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return network.eval()
