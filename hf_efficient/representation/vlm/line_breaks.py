"""Units whose rows end with a line-break token: it is kept where a token of its row is, within the budget."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.maths.importance import coverage_weights, shares
from hf_efficient.representation.maths.kernel import TokenKernel
from hf_efficient.representation.maths.mixture import Mixture, mass
from hf_efficient.representation.reduce import nearest_kept, reduce_tokens, select_order, token_importance
from hf_efficient.representation.selection import generates
from hf_efficient.representation.vlm.families.family import Unit

from .kept import KeptUnit


def choose_with_breaks(
    features: Tensor,
    unit: Unit,
    scores: Tensor | None,
    query: Tensor | None,
    groups: Tensor | None,
    config: TokenPrunerConfig,
    modality: str,
) -> list[KeptUnit]:
    """`choose_alike` for units whose rows end with a line-break token, which is kept where a token of its row is."""
    assert unit.row is not None
    assert unit.newline is not None
    k, n = config.tokens_to_keep(unit.n), unit.n
    row, newline = unit.row.to(features.device), unit.newline.to(features.device)
    tokens = (~newline).nonzero().squeeze(1)
    inner = features[:, tokens]
    scores = None if scores is None else scores[:, tokens]
    groups = None if groups is None else groups[tokens]
    merges = generates(config.method) or (config.merge_static > 0 and groups is not None)
    # how many tokens each row gets is decided by a method that selects, by the default one where tokens are generated
    selector = TokenPrunerConfig().method if generates(config.method) else config.method
    certain = int(len(tokens) == n - 1 and k > 1)  # a break that ends all rows is kept, and quotas are of the others
    selecting = config.with_method(selector, merge_static=0.0, budget=min(k - certain, len(tokens)))
    order = select_order(inner, selecting, scores, query, groups)
    mask = keep_rows(tokens[order], row, newline, k)
    mixtures: list[Mixture | None] = [None] * len(features)
    if merges:
        for u, count in enumerate(mask[:, tokens].sum(1).tolist()):
            part = lambda values, u=u: None if values is None else values[u : u + 1]  # noqa: E731
            made = reduce_tokens(inner[u : u + 1], replace(config, budget=count), part(scores), part(query), groups)
            mixture = made.mixture
            if mixture is None:  # a choice as it is
                mixture = Mixture(
                    made.indices,
                    nearest_kept(inner[u : u + 1], made.indices),
                    torch.zeros_like(inner[:1, :, 0], dtype=torch.float32).scatter(1, made.indices, 1.0),
                )
            whole = mixture.with_breaks(tokens, row, newline, k)
            mixtures[u], mask[u] = whole, torch.zeros_like(mask[u]).scatter(0, whole.anchors[0], True)
    indices = mask.byte().sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    weights = token_importance(inner.float(), config, scores, query, None)
    columns = (indices, *meters(inner.float(), mask[:, tokens], weights, config))
    kept = [KeptUnit(modality, n, *values, unit.grid) for values in zip(*columns, strict=True)]
    for one, x, made_of in zip(kept, features, mixtures, strict=True):
        one.mixture = made_of
        if made_of is not None or config.proportional_attention:
            one.assignment = nearest_kept(x[None], one.indices[None])[0] if made_of is None else made_of.assignment[0]
            one.mass = mass(one.assignment[None], k)[0]
    return kept


def meters(features: Tensor, kept: Tensor, importance: Tensor, config: TokenPrunerConfig) -> tuple[Tensor, Tensor]:
    """Importance retained (U,) and coverage (U,) of `kept` (U, N) bool, whose number may differ between units."""
    p = shares(importance)
    order = kept.byte().sort(dim=1, descending=True, stable=True).indices[:, : int(kept.sum(1).max())]
    order = torch.where(kept.gather(1, order), order, order[:, :1])  # repeating a token leaves coverage as it is
    nearest = TokenKernel(features, config.kernel, None).rows(order).amax(1)
    coverage = (coverage_weights(p, *config.coverage_weights_of(order.shape[1]), None) * nearest).sum(1)
    return (p * kept).sum(1).clamp(0, 1), coverage.clamp(0, 1)


def keep_rows(order: Tensor, row: Tensor, newline: Tensor, k: int) -> Tensor:
    """The longest start of a greedy order that fits the budget together with the line breaks of its rows.

    A token costs 1, and 1 more if it is the first of its row, since the row's line break is kept with it. Where one
    place remains, it goes to the next token in the order that costs 1, and if there is none to the line break of the
    next row. A budget of one goes to a token in any case.

    Args:
        order: (U, M) long, tokens in the order taken, M >= min(k, number of tokens).
        row: (N,) long, row of every token and of the line break that ends it; -1 for tokens outside of rows.
        newline: (N,) bool, which tokens are line breaks.
        k: the budget, at most N.

    Returns:
        (U, N) bool with exactly k True in every line.
    """
    units, length = order.shape
    n, rows = len(row), int(newline.sum())
    step = torch.arange(length, device=order.device).expand(units, -1)
    of = row[order] + 1  # 0 stands for tokens outside of rows
    first = torch.full((units, rows + 1), length, device=order.device).scatter_reduce(1, of, step, "amin")
    opens = (first.gather(1, of) == step) & (of > 0)
    fits = (1 + opens.long()).cumsum(1) <= k
    kept = torch.zeros(units, n, dtype=torch.bool, device=order.device).scatter(1, order, fits)
    breaks = newline.nonzero().squeeze(1)  # in the order of rows
    opened = torch.zeros(units, rows + 1, dtype=torch.long, device=order.device).scatter_add(1, of, fits.long()) > 0
    opened[:, 0] = False
    kept[:, breaks] = opened[:, 1:]
    spare = kept.sum(1) < k
    cheap = ~fits & ((of == 0) | opened.gather(1, of))
    found = cheap.any(1)
    # the first cheap token, else the first that did not fit: its line break, or itself where nothing is kept yet
    place = torch.where(found, cheap.byte().argmax(1), (~fits).byte().argmax(1)).unsqueeze(1)
    token, next_row = order.gather(1, place), of.gather(1, place)
    line_break = breaks[(next_row - 1).clamp_min(0)]
    chosen = torch.where(found.unsqueeze(1) | ~kept.any(1, keepdim=True), token, line_break)
    return kept.scatter(1, chosen, kept.gather(1, chosen) | spare.unsqueeze(1))
