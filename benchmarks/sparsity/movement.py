"""Movement pruning, a peer: scores learned by straight-through gradients say which weights stay (Sanh et al., 2020).

https://huggingface.co/papers/2005.07683, sections 3 and 4: the forward computes with w * m(s); dL/ds = dL/dz * w. Hard:
m keeps the k largest scores of each layer, k falls along GMP's cubic curve. Soft: m keeps scores whose sigmoid is above
0.1, and a penalty on the mean sigmoid, along the same curve, pushes them down. So that all methods end with equally
many weights, the k largest scores of all layers are kept at the end of the fall.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

THRESHOLD = 0.1


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        weight, mask = ctx.saved_tensors
        return gradient * mask, gradient * weight, None


class Scores(nn.Module):
    """A parametrization of a weight: its scores, all zero at first, and the mask that stands."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.register_buffer("mask", torch.ones_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        masked: Tensor = _StraightThrough.apply(weight, self.scores, self.mask)  # type: ignore[no-untyped-call]
        return masked


class MovementPruning:
    """Prunes layers while they are trained.

    Args:
        layers: linear layers.
        sparsity: at the end.
        steps: of the fall; afterwards masks stand still.
        soft: see the module.
        penalty: weight of the soft form's penalty.
    """

    def __init__(self, layers: Iterable[nn.Linear], sparsity: float, steps: int, soft: bool, penalty: float) -> None:
        self.scores: list[Scores] = []
        for layer in layers:
            self.scores.append(Scores(layer.weight.detach()))
            parametrize.register_parametrization(layer, "weight", self.scores[-1])
        self.sparsity, self.steps, self.soft, self.penalty = sparsity, steps, soft, penalty

    def parameters(self) -> list[nn.Parameter]:
        """The scores."""
        return [each.scores for each in self.scores]

    def kept(self, step: int) -> float:
        """Share of the weights that stay, by the cubic curve."""
        return 1 - self.sparsity + self.sparsity * (1 - min(1.0, step / self.steps)) ** 3

    def loss(self, step: int) -> Tensor | float:
        """The soft form's penalty at a step."""
        if not self.soft or step > self.steps:
            return 0.0
        share = torch.cat([each.scores.sigmoid().flatten() for each in self.scores]).mean()
        return self.penalty * (1 - self.kept(step)) / self.sparsity * share

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Renew the masks after a step of the optimizer."""
        if step > self.steps:
            return
        if not self.soft:
            for each in self.scores:
                each.mask.copy_(largest(each.scores.flatten(), self.kept(step)).view_as(each.mask))
        elif step < self.steps:
            for each in self.scores:
                each.mask.copy_(each.scores.sigmoid() > THRESHOLD)
        else:
            whole = largest(torch.cat([each.scores.flatten() for each in self.scores]), 1 - self.sparsity)
            for each, mask in zip(self.scores, whole.split([each.mask.numel() for each in self.scores]), strict=True):
                each.mask.copy_(mask.view_as(each.mask))


def largest(scores: Tensor, share: float) -> Tensor:
    """(n,) ones where the largest scores are, zeros elsewhere."""
    return torch.zeros_like(scores).index_fill_(0, scores.topk(round(share * len(scores))).indices, 1.0)
