"""The first layers of DINOv2-S with a new head, on small pictures of garments; patches are embedded once."""

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Model

from benchmarks.models.dinov2_from_wheel import load_dinov2
from examples import real_data

LAYERS = 2  # of twelve
SIDE = 56  # pixels: 16 patches and the class token
LIMIT, TEST_LIMIT = 3000, 1000


@functools.cache
def _encoder() -> Dinov2Model:
    return load_dinov2()


class Dinov2Layers(nn.Module):
    """(B, 17, 384), embedded patches -> (B, classes).

    Args:
        classes: of the head, which reads the mean of the normalized tokens.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = copy.deepcopy(_encoder().encoder.layer[:LAYERS])
        self.norm = copy.deepcopy(_encoder().layernorm)
        self.head = nn.Linear(384, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


@functools.cache
def garments() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embedded patches and classes: of the first training pictures of Fashion-MNIST, and of the first test ones."""
    parts = []
    for train, count in ((True, LIMIT), (False, TEST_LIMIT)):
        pixels, classes = real_data.fashion_mnist(train)
        parts += [embedded(torch.tensor(pixels[:count])), torch.from_numpy(classes[:count])]
    return parts[0], parts[1], parts[2], parts[3]


@torch.no_grad()
def embedded(pixels: Tensor) -> Tensor:
    """(n, 28, 28) bytes -> (n, 17, 384)."""
    grey = F.interpolate(pixels[:, None] / 255, size=(SIDE, SIDE), mode="bilinear")
    colours = ((grey - 0.286) / 0.353).expand(-1, 3, -1, -1)
    return torch.cat([_encoder().embeddings(part) for part in colours.split(200)])
