"""A head on a frozen DINOv2 ViT-S/14: five classes of Fashion-MNIST, then the other five.

The encoder reads every image once, enlarged to 6 x 6 patches; its [CLS] token and the mean of its patches are kept on
disk. The head is an MLP (265,000 weights).
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models.dinov2_from_wheel import load_dinov2
from benchmarks.optimization.two_tasks import Pair, halves
from benchmarks.sparsity.tasks import Data, fashion
from examples import real_data
from hf_efficient.files import written_whole

from .words import MLP

SIDE, IMAGES, TEST_IMAGES, WIDTH = 84, 2000, 1000, 768


@functools.cache
def features() -> Data:
    """(N, 768) of the first training images and of the first test images, each channel of mean 0 and variance 1."""
    x, y, x_test, y_test = fashion(IMAGES, (1, 28, 28))()
    path = real_data.CACHE / f"dinov2_fashion_{SIDE}_{IMAGES}.npz"
    if not path.exists():
        arrays = {"train": encoded(x).numpy(), "test": encoded(x_test[:TEST_IMAGES]).numpy()}
        with written_whole(path) as draft:
            np.savez(draft, **arrays)  # type: ignore[arg-type]
    with np.load(path) as stored:
        train, test = (torch.from_numpy(stored[name]) for name in ("train", "test"))
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, y, (test - mean) / std, y_test[:TEST_IMAGES]


@torch.no_grad()
def encoded(x: Tensor) -> Tensor:
    """(N, 1, 28, 28) -> (N, 768): what the encoder says of images."""
    encoder, parts = load_dinov2(), []
    for part in x.split(50):
        pixels = F.interpolate(part, size=(SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1)
        hidden = encoder(pixels).last_hidden_state
        parts.append(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1))
    return torch.cat(parts)


DINOV2 = Pair(
    lambda: halves(features, 0), lambda: halves(features, 1), functools.partial(MLP, inputs=WIDTH), rate=5e-4, steps=150
)  # fmt: skip
