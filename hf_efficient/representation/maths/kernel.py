"""How alike two tokens of a unit are, whatever vector is added to all of them."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

LOWEST = -80.0  # exp(-80) is nothing beside 1, and exp of less gives denormal numbers, which CPUs are slow with


class TokenKernel:
    """Similarities k_ij in [0, 1] among the tokens of every unit.

    With m the mean token and y_i = x_i - m,

        "rbf":    k_ij = exp(-2 |x_i - x_j|² / mean_ab |x_a - x_b|²)
        "cosine": k_ij = (1 + cos(y_i, y_j)) / 2

    Both come from one matrix product of scaled points z, and few passes over it: "rbf" is
    exp(z_i·z_j - |z_i|²/2 - |z_j|²/2) with z = y sqrt(2 / mean_a |y_a|²), and "cosine" is z_i·z_j + 1/2 with
    z = y / (sqrt(2) |y|). Tokens that differ by rounding only count as equal: their noise is not blown up to structure.
    """

    def __init__(self, features: Tensor, kind: str, valid: Tensor | None = None) -> None:
        """Centre, and find the scale.

        Args:
            features: (B, N, D) float32.
            kind: "rbf" or "cosine".
            valid: (B, N) bool or None; only valid tokens shape the mean and the scale.
        """
        self.kind = kind
        weight = None if valid is None else (valid / valid.sum(1, keepdim=True)).unsqueeze(-1)
        mean = _mean(features, weight)
        self.points = features - mean
        square = torch.linalg.vector_norm(self.points, dim=-1, keepdim=True).square_()
        variance = _mean(square, weight)
        noise = 1e-12 * (variance + mean.square().sum(-1, keepdim=True))
        if kind == "cosine":
            scale = torch.where(square > noise, (2 * square).clamp_min(1e-37).rsqrt(), 0)
        else:
            scale = torch.where(variance > noise, 2 / variance.clamp_min(1e-37), 0).sqrt()
        self.points.mul_(scale)
        self.half = square.mul_(scale.square()).mul_(0.5)
        self.variance = variance  # (B, 1, 1); not finite if the features are not, or their squares are not

    def panel(self, start: int, stop: int, end: int) -> Tensor:
        """Similarities of tokens 0..end-1 to tokens start..stop-1: (B, end, stop - start)."""
        columns = slice(start, stop)
        return self._between(self.points[:, :end], self.half[:, :end], self.points[:, columns], self.half[:, columns])

    def rows(self, indices: Tensor) -> Tensor:
        """Similarities of the tokens `indices` (B, M) long to all tokens: (B, M, N)."""
        points = self.points.gather(1, indices.unsqueeze(-1).expand(-1, -1, self.points.shape[-1]))
        return self._between(points, self.half.gather(1, indices.unsqueeze(-1)), self.points, self.half)

    def _between(self, left: Tensor, left_half: Tensor, right: Tensor, right_half: Tensor) -> Tensor:
        transposed = right.transpose(1, 2)
        if self.kind == "cosine":
            return torch.baddbmm(left.new_full((1, 1, 1), 0.5), left, transposed).clamp_(0, 1)
        halves = left_half + right_half.transpose(1, 2)
        return torch.baddbmm(halves, left, transposed, beta=-1).clamp_(LOWEST, 0).exp_()

    def weighted(self, weights: Tensor) -> Tensor:
        """The whole matrix with column i scaled by weights_i: (B, N, N), entry (j, i) = weights_i k_ji.

        k is symmetric, so only panels on and above the diagonal are computed; the rest is their mirror image.

        Args:
            weights: (B, N) float32.
        """
        n = weights.shape[1]
        matrix = weights.new_empty(weights.shape[0], n, n)
        step = max(96, -(-n // 15))
        for start in range(0, n, step):
            stop = min(n, start + step)
            panel = self.panel(start, stop, stop)
            torch.mul(panel, weights[:, None, start:stop], out=matrix[:, :stop, start:stop])
            if start:
                mirrored = panel[:, :start].transpose(1, 2)
                torch.mul(mirrored, weights[:, None, :start], out=matrix[:, start:stop, :start])
        return matrix

    def gains(self, weights: Tensor, covered: Tensor | None) -> Tensor:
        """What each token adds to the coverage, without storing the matrix: sum_i relu(weights_i k_ji - covered_i).

        Args:
            weights: (B, N) float32.
            covered: (B, N) float32, or None for zeros.

        Returns:
            (B, N) float32.
        """
        n = weights.shape[1]
        total = torch.zeros_like(weights)
        for start in range(0, n, 128):
            columns = slice(start, min(n, start + 128))
            panel = self.panel(start, columns.stop, n).mul_(weights[:, None, columns])
            total += (panel if covered is None else panel.sub_(covered[:, None, columns]).relu_()).sum(-1)
        return total

    def part(self, units: slice) -> TokenKernel:
        """The kernel of some of the units."""
        some = copy(self)
        for name in ("points", "half", "variance"):
            setattr(some, name, getattr(self, name)[units])
        return some


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean(1, keepdim=True) if weight is None else (values * weight).sum(1, keepdim=True)
