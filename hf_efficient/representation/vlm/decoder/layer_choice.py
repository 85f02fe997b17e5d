"""What visual tokens are worth to a layer of the language model, by the rules of `TokenPrunerConfig.llm_choice`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.maths.steps import fixed_draw
from hf_efficient.shards import mean_of_heads

SEEDS = 0.01  # of the visual tokens: those most like the question, which are asked along with it
LANDMARKS = 1 / 6  # of the budget, to each of cosine and sine: 5 % of the tokens beside 20 % in the public code


def attention_paid(
    query: Tensor, key: Tensor, mask: Tensor | None, at: Tensor, scaling: float | None, over: Any = None
) -> Tensor:
    """Attention that one token pays to all before it, mean of heads (FastV, PyramidDrop): (B, L) float32.

    Args:
        query: (B, H, L, d), rotated.
        key: (B, h, L or more, d), rotated; H is a multiple of h.
        mask: of the layer, (B or 1, 1, L, L or more) bool or additive, or None.
        at: (B, 1) long, the token.
        scaling: factor of the dot product; None is 1/sqrt(d).
        over: the processes that have the other heads, if there are some.
    """
    asked = query.gather(2, at[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)[:, :, : query.shape[2]]
    logits = (asked.float() * keys.float()).sum(-1) * (scaling or query.shape[-1] ** -0.5)
    indices = torch.arange(logits.shape[-1], device=logits.device)
    logits = logits.masked_fill((indices > at).unsqueeze(1), -torch.inf)
    if mask is not None:
        row = mask.expand(len(query), -1, -1, -1).gather(2, at[:, None, :, None].expand(-1, 1, -1, mask.shape[3]))
        row = row[:, 0, :, : logits.shape[-1]]
        logits = logits.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else logits + row.float()
    return mean_of_heads(logits.softmax(-1).sum(1), logits.shape[1], over)


def likeness_of_values(value: Tensor, real: Tensor, visual: Tensor, at: Tensor, over: Any = None) -> Tensor:
    """How much visual tokens are like the question by their values (IVC-Prune): (B, L) float32, seeds above 1.

    a_ij = mean of heads of softmax_j(v_i . v_j / sqrt(d)). Seeds are the visual tokens with the largest mean a_ij over
    the question's i; all are then scored by the mean over question and seeds. Values are not rotated, so near and far
    tokens count alike.

    Args:
        value: (B, h, L or more, d).
        real: (B, L) bool, no padding.
        visual: (B, L) bool.
        at: (B, 1) long, the last token of the prompt; the question is the text from the last visual token to it.
        over: the processes that have the other heads, if there are some.
    """
    n = real.shape[1]
    indices = torch.arange(n, device=value.device)
    after = torch.where(visual, indices, -1).amax(1, keepdim=True)
    asked = (real & ~visual & (indices > after) & (indices <= at)) | (indices == at)
    alike = torch.zeros(*real.shape, n, device=value.device)
    for head in value[:, :, :n].float().unbind(1):  # one at a time: all would be as many maps as heads
        logits = torch.bmm(head, head.transpose(1, 2)) * head.shape[-1] ** -0.5
        alike += logits.masked_fill(~real.unsqueeze(1), -torch.inf).softmax(-1)
    alike = mean_of_heads(alike, value.shape[1], over)
    count = (SEEDS * visual.sum(1)).round().clamp_min(1).long()
    seeds = first(_mean_of(alike, asked), visual, count)
    return _mean_of(alike, asked | seeds) + seeds.float()


def landmarks(rotary: tuple[Tensor, ...], visual: Tensor, quota: Tensor) -> Tensor:
    """Tokens whose rotation is nearest to none and to 90 degrees, mean over the angles (IVC-Prune): (B, L) bool.

    Args:
        rotary: cosines and sines of the positions, (B or 1, L, d) each.
        visual: (B, L) bool.
        quota: (B,) long, tokens that are kept; each of the two kinds gets `LANDMARKS` of them.
    """
    count = (LANDMARKS * quota).round().long()
    cosine, sine = (first(part.float().mean(-1).expand(visual.shape), visual, count) for part in rotary)
    return cosine | sine


def drawn(visual: Tensor) -> Tensor:
    """A fixed draw among the visual tokens of every row, (B, L) float32: the larger, the longer kept.

    It depends on how many there are alone, so that rows do not change with their batch.
    """
    worth = torch.zeros(visual.shape, device=visual.device)
    for row, here in zip(worth, visual, strict=True):
        row[here] = fixed_draw(int(here.sum()), visual.device).float()
    return worth


def first(scores: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` (B,) tokens with the largest scores (B, L) among some: (B, L) bool; of equals the first."""
    order = scores.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < count.unsqueeze(1)) & among


def _mean_of(alike: Tensor, rows: Tensor) -> Tensor:
    """Mean (B, L) of some rows (B, L) bool of maps (B, L, L)."""
    weights = rows.float() / rows.sum(1, keepdim=True)
    return torch.bmm(weights.unsqueeze(1), alike).squeeze(1)
