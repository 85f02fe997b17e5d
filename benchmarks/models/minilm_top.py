"""Fine-tuning of the top layers of MiniLM: those below are run once for every text, and their output is kept."""

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from examples import real_data
from hf_efficient.files import written_whole

TOKENS = 32
LIMIT = 6000  # training texts kept; a run takes a few hundred of them
TEST_LIMIT = 1000


@functools.cache
def _encoder() -> Any:
    return AutoModel.from_pretrained(real_data.minilm(), attn_implementation="eager").eval()


class MiniLMTop(nn.Module):
    """(B, T, 1 + 384) -> (B, classes): a token's first feature says whether it is one, the rest is its state.

    Args:
        classes: of the head.
        layers: of MiniLM's six, from the top.
    """

    def __init__(self, classes: int, layers: int = 2) -> None:
        super().__init__()
        self.layers = copy.deepcopy(_encoder().encoder.layer[-layers:])
        self.head = nn.Linear(384, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = through(layer, x)
        there, hidden = x[..., :1], x[..., 1:]
        return self.head((hidden * there).sum(1) / there.sum(1))


def through(layer: nn.Module, x: Tensor) -> Tensor:
    """(B, T, 1 + 384) -> the same, one layer of the encoder higher."""
    there, hidden = x[..., :1], x[..., 1:]
    out = layer(hidden, (1 - there.transpose(1, 2)[:, None]) * -1e4)
    return torch.cat([there, out[0] if isinstance(out, tuple) else out], -1)


@torch.no_grad()
def below_top(x: Tensor) -> Tensor:
    """States below the top layer, of those below the top two that `hidden_states` returns."""
    layer = _encoder().encoder.layer[-2]
    return torch.cat([through(layer, part) for part in x.split(100)])


@torch.no_grad()
def hidden_states(name: str, layers: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training states and labels, test states and labels, of a data set of `real_data`; cached on disk.

    The states are those that the top `layers` start from.
    """
    path = real_data.CACHE / f"minilm_{name}_{TOKENS}_{layers}.npz"
    if not path.exists():
        arrays = {}
        for train in (True, False):
            texts = getattr(real_data, name)(train)
            picked = np.random.default_rng(0).permutation(len(texts.texts))[: LIMIT if train else TEST_LIMIT]
            part = "train" if train else "test"
            arrays[f"{part}_y"] = texts.labels[picked]
            arrays[f"{part}_x"] = _below([texts.texts[i] for i in picked], layers).half().numpy()
        with written_whole(path) as draft:
            np.savez(draft, **arrays)  # type: ignore[arg-type]
    with np.load(path) as stored:
        read = [torch.from_numpy(stored[key]) for key in ("train_x", "train_y", "test_x", "test_y")]
    return read[0].float(), read[1], read[2].float(), read[3]


def _below(texts: list[str], layers: int) -> Tensor:
    tokenizer, encoder = AutoTokenizer.from_pretrained(real_data.minilm()), _encoder()
    parts = []
    for start in tqdm(range(0, len(texts), 100), desc="MiniLM's lower layers"):
        batch = tokenizer(
            texts[start : start + 100], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        hidden = encoder(**batch, output_hidden_states=True).hidden_states[-1 - layers]
        parts.append(torch.cat([batch["attention_mask"][..., None].float(), hidden], -1))
    return torch.cat(parts)
