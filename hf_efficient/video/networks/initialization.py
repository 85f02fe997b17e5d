"""What a network is before it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbones import WDSR


def start_from_bicubic(net: nn.Module) -> None:
    """Let an untrained WDSR begin as bicubic enlargement: the skip holds its kernels, the tail speaks softly.

    The 5x5 skip spans the four taps of every sub-pixel position, so the start is exact away from the frame's border.
    Ours, not the paper's: a short training need not learn what is known. Other backbones are left as they are (SRCNN
    and VDSR enlarge by themselves).
    """
    if not isinstance(net, WDSR):
        return
    s = net.scale
    with torch.no_grad():
        positions = (torch.arange(s, dtype=torch.float64) + 0.5) / s - 0.5
        taps = cubic(torch.arange(-2, 3, dtype=torch.float64)[None] - positions[:, None])  # (s, 5)
        kernels = (taps[:, None, :, None] * taps[None, :, None, :]).reshape(s * s, 5, 5)
        net.skip.weight.copy_(torch.einsum("ck,nhw->cnkhw", torch.eye(3), kernels.float()).reshape(3 * s * s, 3, 5, 5))
        net.tail.weight.mul_(0.1)


def cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' kernel of support [-2, 2]."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
