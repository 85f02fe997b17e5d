"""Training behind a large frozen encoder: its features of all scenes are made once and read from a file."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import trange
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_efficient.files import NpyWriter, written_whole

from .data import TurnData
from .scenes import Scene, compose_scene

BATCH = 32


@dataclass
class EncodedTurns(TurnData):
    """Turns about a limited number of scenes, asked about anew each time, whose features stand for their pixels.

    `features`: (S, 1 + N, D), of the S `scenes()` as `encode_scenes` makes them.
    """

    features: np.ndarray = field(default_factory=lambda: np.empty(0))

    def scenes(self, count: int) -> list[Scene]:
        """The first `count` scenes."""
        return [self._scene(number) for number in range(count)]

    def _scene(self, number: int) -> Scene:
        return compose_scene(np.random.default_rng((self.seed, number)), self.images, self.layout)

    def _look(self, rng: np.random.Generator, index: int) -> tuple[Scene, Tensor]:
        number = index % len(self.features)
        return self._scene(number), torch.from_numpy(self.features[number].astype(np.float32))


class FromFile(nn.Module):
    """Stands where the encoder was: what it is given are the encoder's hidden states of the layer that is read."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, hidden_states: Tensor, **_: Any) -> BaseModelOutput:
        """Hidden states (B, 1 + N, D), whichever layer is asked for."""
        return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=(hidden_states,) * self.layers)


def encode_scenes(
    tower: PreTrainedModel, layer: int, image_processor: Any, scenes: Sequence[Scene], path: Path
) -> np.ndarray:
    """The tower's hidden states `layer` of all scenes, (S, 1 + N, D) float16, kept in the file `path` (.npy)."""
    if not path.exists():
        encode_images(tower, layer, image_processor, lambda number: scenes[number].image(), len(scenes), path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def encode_images(
    tower: PreTrainedModel,
    layer: int,
    image_processor: Any,
    image: Callable[[int], Image.Image],
    count: int,
    path: Path,
) -> None:
    """Write the tower's hidden states `layer` of the images `image(0)`, `image(1)`, ... as `encode_scenes` does."""
    with written_whole(path) as draft, ExitStack() as stack:
        for start in trange(0, count, BATCH, desc=f"{path}: images, {BATCH} at a time"):
            batch = [image(number) for number in range(start, min(start + BATCH, count))]
            pixels = image_processor(batch, return_tensors="pt")["pixel_values"]
            with torch.autocast(tower.device.type, torch.bfloat16):
                hidden = tower(pixels.to(tower.device), output_hidden_states=True).hidden_states[layer].half().cpu()
            if start == 0:
                made = stack.enter_context(NpyWriter(draft, np.float16, (count, *hidden.shape[1:])))
            made.add(hidden.numpy())


@torch.no_grad()
def standardize(layer: nn.Linear, features: np.ndarray) -> None:
    """Change a layer so that it starts as if the channels of `features` had mean 0 and variance 1."""
    sample = torch.from_numpy(features[:256].astype(np.float32)).flatten(0, 1)
    layer.weight.div_(sample.std(0))
    layer.bias.sub_(layer.weight @ sample.mean(0))
