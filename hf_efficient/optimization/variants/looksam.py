"""LookSAM (Liu et al., CVPR 2022, arXiv 2203.02714): SAM every k steps, its gradient change reused in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_efficient.optimization.engine.perturbation import Direction, Weights, dot, global_norm
from hf_efficient.optimization.engine.variant import Batch, Variant

from .sam import sam_point

if TYPE_CHECKING:
    from hf_efficient.optimization.arguments import SAMArguments


@torch.no_grad()
def across(g_s: Direction, g: Direction) -> dict[Tensor, Tensor]:
    """g_v = g_s - (⟨g_s, g⟩ / ⟨g, g⟩) g: SAM's gradient g_s = ∇L(w + ε) orthogonal to g = ∇L(w) (Algorithm 1)."""
    along = dot(g_s, g) / max(dot(g, g), 1e-30)
    return {p: g_s[p] - along * g[p] for p in g_s if p in g}


@torch.no_grad()
def add_across(g: Direction, g_v: Direction, alpha: float) -> None:
    """g ← g + α (‖g‖ / ‖g_v‖) g_v, in place: the gradient of the steps in between (Algorithm 1)."""
    scale = alpha * global_norm(g) / global_norm(g_v)
    for p in g:
        if p in g_v:
            other = g_v[p].to_sparse(g[p].sparse_dim()) if g[p].is_sparse else g_v[p]
            g[p].add_(other, alpha=scale)


class LookSAMVariant(Variant):
    """Two forward and two backward passes in every k-th step, one of each in the others. It remembers g_v.

    Args:
        interval: k.
        alpha: α.
    """

    needs_batch = needs_loss = True
    idle_reason = "the first gradient is zero."

    def __init__(self, interval: int, alpha: float) -> None:
        super().__init__()
        self.interval, self.alpha = interval, alpha
        self.memory = {"across": {}}

    @property
    def period(self) -> int:
        """k: the gradient at w + ε is taken in every k-th step."""
        return self.interval

    @classmethod
    def of(cls, arguments: SAMArguments, optimizer: Callable[[], Any]) -> LookSAMVariant:
        """A new one with these settings."""
        return cls(arguments.reuse_interval, arguments.reuse_weight)

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at w + ε inside the block in every k-th step, at w in the others."""
        if self.step % self.interval == 0 or not self.memory["across"]:
            g = batch.gradient()
            with sam_point(weights, g, rho, measure):
                yield
            if g_s := batch.kept_gradients():
                g_v = across(g_s, g)
                if 0 < global_norm(g_v) < float("inf"):
                    self.memory["across"] = g_v
        else:
            yield
            g = weights.gradients()
            add_across(g, self.memory["across"], self.alpha)
            weights.took_effect |= any(p in self.memory["across"] for p in g)
