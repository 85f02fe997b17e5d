"""LookSAM (Liu et al., CVPR 2022): a full SAM step every k steps; in between, what it changed is used again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_efficient.optimization.engine.perturbation import Direction, Weights, dot, global_norm

from .variant import Batch, Memory


class LookSAMAscent:
    """Every k steps g_s = ∇L(w + ρ g/‖g‖), and g_v = g_s - (⟨g_s, g⟩ / ⟨g, g⟩) g, the part across g = ∇L(w).

    In the other steps the gradient is g + α (‖g‖ / ‖g_v‖) g_v (Algorithm 1): one forward and one backward pass.

    Args:
        interval: k.
        alpha: α.
    """

    still = "the first gradient is zero."

    def __init__(self, interval: int, alpha: float) -> None:
        self.interval, self.alpha = interval, alpha
        self.memory: Memory = {"across": {}}
        self.step = 0

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at w + ε inside the block in every k-th step, at w in the others."""
        if self.step % self.interval == 0 or not self.memory["across"]:
            g = batch.gradient()
            with weights.moved(weights.pack(g), rho, measure):
                yield
            self._remember(g, batch.kept_gradients())
        else:
            yield
            self._add_across(weights)

    @torch.no_grad()
    def _remember(self, g: Direction, g_s: Direction) -> None:
        if not g_s:
            return
        along = dot(g_s, g) / max(dot(g, g), 1e-30)
        across = {p: g_s[p] - along * g[p] for p in g_s if p in g}
        if 0 < global_norm(across) < float("inf"):
            self.memory["across"] = across

    @torch.no_grad()
    def _add_across(self, weights: Weights) -> None:
        g, across = weights.gradients(), self.memory["across"]
        scale = self.alpha * global_norm(g) / global_norm(across)
        for p in g:
            if p in across:
                other = across[p].to_sparse(g[p].sparse_dim()) if g[p].is_sparse else across[p]
                g[p].add_(other, alpha=scale)
                weights.acted = True
