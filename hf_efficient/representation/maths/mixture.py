"""What a method that generates tokens returns: which of the N go into which of the K, and how much."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Mixture:
    """K tokens as weighted sums of N: z_k = sum over m with target_m = k of weights_m · x_(source_m).

    It is data, not a function, so that the same mixture makes tokens of every level of features of the same image,
    and so that what became of a token can be looked up.

    Args:
        anchors: (B, K) long, distinct and rising: the tokens whose positions in the prompt the K take.
        assignment: (B, N) long in [0, K): which of the K stands for each of the N.
        weights: (B, M) float32.
        source: (B, M) long in [0, N), or None: every token once, in order (M = N).
        target: (B, M) long in [0, K), or None: every token goes into the one that stands for it (M = N).
        keep_norm: scale every token to the weighted mean length of what goes into it; averages are shorter than that.
    """

    anchors: Tensor
    assignment: Tensor
    weights: Tensor
    source: Tensor | None = None
    target: Tensor | None = None
    keep_norm: bool = False

    def of(self, features: Tensor) -> Tensor:
        """The K tokens.

        Args:
            features: (B, N, D), any float dtype; summed in float32.

        Returns:
            (B, K, D) in the dtype of the features, with their gradient.
        """
        x = features.float()
        width = x.shape[-1]
        parts = x if self.source is None else x.gather(1, self.source.unsqueeze(-1).expand(-1, -1, width))
        parts = parts * self.weights.unsqueeze(-1)
        target = self.assignment if self.target is None else self.target
        mixed = sum_by(target, parts, self.anchors.shape[1])
        if self.keep_norm:
            length = sum_by(target, torch.linalg.vector_norm(parts, dim=-1, keepdim=True), self.anchors.shape[1])
            mixed = mixed * (length / torch.linalg.vector_norm(mixed, dim=-1, keepdim=True).clamp_min(1e-12))
        return mixed.to(features.dtype)

    def unit(self, index: int) -> Mixture:
        """The mixture of one unit, as a batch of one."""
        rows = slice(index, index + 1)
        return Mixture(
            self.anchors[rows],
            self.assignment[rows],
            self.weights[rows],
            None if self.source is None else self.source[rows],
            None if self.target is None else self.target[rows],
            self.keep_norm,
        )

    def with_breaks(self, tokens: Tensor, row: Tensor, newline: Tensor, k: int) -> Mixture:
        """The mixture of one unit (a batch of one) without its line breaks, with line breaks added up to k tokens.

        Rows with most anchors come first, then rows from the top. A line break that is left out is stood for by the
        nearest token before it (for none before it: the first).

        Args:
            tokens: (M,) long, indices of the M tokens of this mixture among the N of the unit.
            row: (N,) long, row of every token and line break; -1 outside of rows.
            newline: (N,) bool.
            k: tokens to have, at least those of this mixture.
        """
        anchors, breaks = tokens[self.anchors[0]], newline.nonzero().squeeze(1)
        used = torch.zeros(len(breaks) + 1, dtype=torch.long, device=row.device)
        used = used.index_add(0, row[anchors] + 1, torch.ones_like(anchors))[1:]
        first = used.sort(descending=True, stable=True).indices[: k - len(anchors)]
        every, order = torch.cat([anchors, breaks[first]]).sort()
        index = order.argsort()  # from a token of this mixture to its index among all k
        target = torch.searchsorted(every, torch.arange(len(row), device=row.device), right=True).sub(1).clamp_min(0)
        assignment = target.scatter(0, tokens, index[self.assignment[0]])
        into = self.assignment if self.target is None else self.target
        source = torch.arange(len(tokens), device=row.device) if self.source is None else self.source[0]
        source = torch.cat([tokens[source], breaks[first]])
        target = torch.cat([index[into[0]], index[len(anchors) :]])
        weights = torch.cat([self.weights[0], self.weights.new_ones(len(first))])
        return Mixture(every[None], assignment[None], weights[None], source[None], target[None], self.keep_norm)


def sum_by(target: Tensor, values: Tensor, k: int) -> Tensor:
    """Sums (B, k, D) of values (B, M, D) with the same target (B, M) long."""
    batch, _, width = values.shape
    rows = target + k * torch.arange(batch, device=values.device).unsqueeze(1)
    sums = values.new_zeros(batch * k, width)  # whole rows are added, many times faster than number by number
    return sums.index_add(0, rows.flatten(), values.flatten(0, 1)).view(batch, k, width)


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Which of centres (B, K, D) is nearest to each of x (B, N, D): (B, N) long; equal distances to the first.

    |x - z|² without |x|², which is the same for all centres. Tokens go in parts: memory O(B·1024·K).
    """
    half = centres.square().sum(-1).unsqueeze(1) / 2
    parts = (torch.baddbmm(half, part, centres.transpose(1, 2), alpha=-1) for part in x.split(1024, dim=1))
    return torch.cat([part.argmin(-1) for part in parts], dim=1)


def mass(assignment: Tensor, k: int, valid: Tensor | None = None) -> Tensor:
    """How many tokens each of the k stands for, (B, k) float32, of assignment (B, N) long; `valid` (B, N) bool."""
    ones = torch.ones_like(assignment, dtype=torch.float32) if valid is None else valid.float()
    return sum_by(assignment, ones.unsqueeze(-1), k).squeeze(-1)
