"""The language model and projector of the shipped tiny VLM, fine-tuned on scenes of small garments among clutter.

The tower is frozen and its states are computed once. Questions are asked as in the training of the model, five behind
an image, and are right if every word of the answer is the likeliest. With fewer visual tokens, those that ID-Pruner
does not take are hidden from all layers, which is what leaving them out at their old positions is. What is remembered
is how well the scenes that the model knew before are read.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.optimization.two_tasks import Pair
from benchmarks.sparsity.tasks import Data
from examples.tiny_vlm.data import (
    IGNORED,
    VISUAL_TOKENS,
    collate_turns,
    pack_turns,
    pixel_values,
    sample_turns,
    visual_positions,
)
from examples.tiny_vlm.encoded import FromFile
from examples.tiny_vlm.scenes import LAYOUTS, compose_scene, load_fashion_mnist
from hf_efficient import TokenPrunerConfig, reduce_tokens
from hf_efficient.representation.evaluation.questions import load_vlm

TURNS, LENGTH = 5, 190  # questions of an image, and tokens of the longest row
#: (scenes, layout, images, seed): training, test; scenes of the kind known before, for tuning and for the test.
PARTS = ((300, "dense", "train", 5000), (64, "dense", "t10k", 5001), (48, "standard", "train", 5002),
         (48, "standard", "t10k", 5003))  # fmt: skip


@functools.cache
def shipped() -> tuple[Any, Any]:
    """Model and processor."""
    model, processor = load_vlm()
    return model.float(), processor


@functools.cache
@torch.no_grad()
def scenes() -> dict[str, Tensor]:
    """All rows of all `PARTS`: the tower's states, and what `pack_turns` returns, padded to `LENGTH`."""
    model, processor = shipped()
    ids, made = processor.tokenizer.get_vocab(), []
    for count, layout, split, seed in PARTS:
        images = load_fashion_mnist(split)
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            scene = compose_scene(rng, images, LAYOUTS[layout])
            start = visual_positions(rng, VISUAL_TOKENS) if seed == PARTS[0][3] else list(range(1, VISUAL_TOKENS + 1))
            packed = pack_turns(ids, [0, *start], sample_turns(rng, scene, TURNS, ("largest",)))
            made.append({"pixel_values": pixel_values(scene), **packed})
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    pixels = torch.stack([row.pop("pixel_values") for row in made])
    states = [tower(part, output_hidden_states=True).hidden_states[layer] for part in pixels.split(64)]
    fill = {"input_ids": 0, "turn": -1, "position_ids": 0, "labels": IGNORED}
    padded = {n: torch.stack([nn.functional.pad(r[n], (0, LENGTH - len(r[n])), value=v) for r in made])
              for n, v in fill.items()}  # fmt: skip
    return {"pixel_values": torch.cat(states), **padded}


def part(number: int) -> tuple[Tensor, Tensor]:
    """Numbers of the rows of one of `PARTS`, and the words (N, LENGTH - 1) after each of theirs."""
    start = sum(one[0] for one in PARTS[:number])
    rows = torch.arange(start, start + PARTS[number][0])
    return rows, scenes()["labels"][rows, 1:]


class Answers(nn.Module):
    """(B,) numbers of rows -> (B, words, LENGTH - 1): what comes after each token, with `budget` visual tokens."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = load_vlm()[0].float()
        self.model.model.vision_tower = FromFile(self.model.config.vision_config.num_hidden_layers + 1)
        self.budget = VISUAL_TOKENS

    def forward(self, x: Tensor) -> Tensor:
        batch = collate_turns([{name: of[row] for name, of in scenes().items()} for row in x.tolist()])
        batch.pop("labels")
        if self.budget < VISUAL_TOKENS:
            features = torch.stack(list(self.model.model.get_image_features(batch["pixel_values"]).pooler_output))
            kept = reduce_tokens(features, TokenPrunerConfig(budget=self.budget)).indices
            hidden = torch.ones(len(x), VISUAL_TOKENS, dtype=torch.bool).scatter(1, kept, False)
            batch["attention_mask"][..., 1 : 1 + VISUAL_TOKENS] &= ~hidden[:, None, None]
        return self.model(**batch).logits[:, :-1].transpose(1, 2)


@torch.no_grad()
def percent_answered(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of the questions of which every word of the answer is right."""
    net.eval()
    wrong = torch.cat([(net(part).argmax(1) != right) & (right != IGNORED)
                       for part, right in zip(x.split(32), y.split(32), strict=True)])  # fmt: skip
    turn = scenes()["turn"][x, 1:]
    asked = [(turn == number) & (y != IGNORED) for number in range(1, TURNS + 1)]
    right = torch.stack([of.any(1) & ~(of & wrong).any(1) for of in asked])
    return 100 * float(right.sum() / torch.stack([of.any(1) for of in asked]).sum())


def more(net: Any, x: Tensor, y: Tensor) -> dict[str, float]:
    """Of fewer visual tokens, and of the kind of scenes that was known before."""
    found = {}
    for net.budget in (36, 9):
        found[f"{net.budget} tokens"] = percent_answered(net, x, y)
    net.budget = VISUAL_TOKENS
    tuning = int(x.max()) < PARTS[0][0]
    return {**found, "scenes known before": percent_answered(net, *part(2 if tuning else 3))}


def first() -> Data:
    """Scenes of small garments."""
    return *part(0), *part(1)


TINY_VLM = Pair(
    first, None, Answers, rate=3e-4, steps=50, batch=4, tuning_seeds=0, bits=(4, 3), pruned=(), own_heads=False,
    score=percent_answered, more=more,
)  # fmt: skip
