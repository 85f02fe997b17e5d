"""Stage I: the importance of a token, computed without looking at any pair of kept tokens.

Every score is per unit (one image, tile or frame): nothing here mixes rows of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cls_attention(query: Tensor, keys: Tensor, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """Attention that one query, the [CLS] token, pays to every key: p_i = mean_h softmax_i(q^h . k_i^h * scale).

    One row of the attention map, so the map itself is never made and the model may go on using fused attention.

    Args:
        query: (B, H, d) the [CLS] query of every head, as it enters the dot product.
        keys: (B, H, N, d) all keys of the layer, the [CLS] key among them; drop its column from the result.
        scale: factor of the dot product; None is 1/sqrt(d).
        bias: (B or 1, H or 1, N) float32 added to the logits, -inf for keys the query does not see; None is 0.

    Returns:
        (B, N) float32, each row sums to 1.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = _dot(keys.float(), query.float().unsqueeze(-2)) * scale
    return (logits if bias is None else logits + bias).softmax(-1).mean(1)


def received_attention(
    queries: Tensor, keys: Tensor, scale: float | None = None, chunk: int = 256, bias: Tensor | None = None
) -> Tensor:
    """Attention every key receives, averaged over heads and the queries that see it: p_j = mean_h mean_i A^h_ij.

    Args:
        queries: (B, H, N, d).
        keys: (B, H, N, d).
        scale: factor of the dot product; None is 1/sqrt(d).
        chunk: queries handled at once, so that memory is O(B·H·chunk·N) and not O(B·H·N²).
        bias: (B or 1, H or 1, N, N) float32 added to the logits, -inf where a query does not see a key; None is 0.
            Every query sees a key at least.

    Returns:
        (B, N) float32. Each row sums to 1; where images stand in one sequence and see themselves alone, each image.
        0 for keys that no query sees.
    """
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    keys_t = keys.float().transpose(-1, -2)
    received = keys_t.new_zeros(keys.shape[0], keys.shape[2])
    rows = queries.split(chunk, dim=2)
    for part, added in zip(rows, [None] * len(rows) if bias is None else bias.split(chunk, dim=2), strict=True):
        logits = torch.matmul(part.float() * scale, keys_t)
        received += (logits if added is None else logits + added).softmax(-1).sum(2).mean(1)
    if bias is None:
        return received / queries.shape[2]
    return received / (bias > -torch.inf).float().mean(1).sum(1).clamp_min(1)


def distinctiveness(features: Tensor, valid: Tensor | None = None) -> Tensor:
    """Attention-free importance: minus the mean cosine to the other tokens, g_i = -(1/(N-1)) sum_{j!=i} cos(x_i, x_j).

    The sum over j is a product with the mean direction, so time is O(B·N·D) and no pair is formed.

    Args:
        features: (B, N, D), any float dtype; computed in float32.
        valid: (B, N) bool or None; tokens marked False count for nothing and get 0.

    Returns:
        (B, N) float32 in [0, 1], scaled from smallest to largest in every unit.
    """
    directions = F.normalize(features.float(), dim=-1)
    if valid is not None:
        directions = directions * valid.unsqueeze(-1)
    total = directions.sum(1)
    return rescale(-_dot(directions, total.unsqueeze(1)), valid)


def norms(features: Tensor) -> Tensor:
    """Length of every token, (B, N) float32, of features (B, N, D): a weak stand-in where nothing better exists."""
    length: Tensor = torch.linalg.vector_norm(features.float(), dim=-1)
    return length


def relevance(features: Tensor, query: Tensor, sign: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """How much a token has to do with the question: mean cosine to the question's tokens, in a shared space.

    Args:
        features: (B, N, D) visual tokens.
        query: (B, T, D) question tokens in the same space.
        sign: -1.0 for spaces where dissimilarity marks what is asked for, as reported of CLIP's joint space.
        valid: (B, N) bool or None.

    Returns:
        (B, N) float32 in [0, 1], scaled from smallest to largest in every unit.
    """
    direction = F.normalize(query.float(), dim=-1).mean(1)
    cosine = _dot(F.normalize(features.float(), dim=-1), direction.unsqueeze(1))
    return rescale(sign * cosine, valid)


def rescale(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Scores from smallest to largest to [0, 1] in every unit; a unit of equal scores becomes 0. Invalid tokens get 0.

    Args:
        scores: (B, N) float32.
        valid: (B, N) bool or None.
    """
    ignored = torch.zeros_like(scores, dtype=torch.bool) if valid is None else ~valid
    low = scores.masked_fill(ignored, torch.inf).amin(1, keepdim=True)
    high = scores.masked_fill(ignored, -torch.inf).amax(1, keepdim=True)
    span = high - low
    return ((scores - low) / torch.where(span > 0, span, 1)).masked_fill(ignored, 0)


def shares(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    """Non-negative scores as shares of their unit: (B, N), each row sums to 1. A unit of zeros gets equal shares.

    Args:
        scores: (B, N) float32, >= 0.
        valid: (B, N) bool or None; invalid tokens get 0.
    """
    ones = torch.ones_like(scores) if valid is None else valid.to(scores.dtype)
    scores = scores * ones
    # divided by the largest first, since the sum of large scores may overflow and of small ones vanish
    peak = scores.amax(1, keepdim=True)
    scores = torch.where(peak > 0, scores / torch.where(peak > 0, peak, 1), ones)
    return scores / scores.sum(1, keepdim=True)


def coverage_weights(p: Tensor, mix: float, power: float, valid: Tensor | None) -> Tensor:
    """pi_i = a p_i^gamma / sum p^gamma + (1 - a) / N over the valid tokens: (B, N), each row sums to 1.

    With a large gamma alone nothing would stand for what is everywhere, the background, and what attention gives it
    would go to a token of something else. (1 - a) / N makes it worth a token.

    Args:
        p: (B, N) float32 shares.
        mix: a.
        power: gamma.
        valid: (B, N) bool or None.
    """
    if power != 1:
        p = shares((p / p.amax(1, keepdim=True)).pow(power), valid)
    return mix * p + (1 - mix) * shares(torch.ones_like(p), valid)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot products over the last dimension; not by matmul, whose rounding would depend on the batch size."""
    return (left * right).sum(-1)
