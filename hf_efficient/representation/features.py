"""From the features of an encoder to those of the kept tokens, unit by unit, whatever container they come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .config import TokenPrunerConfig
from .families.family import Family, Pictures, Unit
from .importance import shares
from .reduce import nearest_kept, reduce_tokens, select_order, token_importance
from .selection import GENERATORS
from .selection.id_pruner import coverage_weights
from .selection.kernel import TokenKernel
from .selection.mixture import Mixture, mass


@dataclass
class KeptUnit:
    """What was kept of one picture, tile, frame or video.

    Args:
        modality: "image" or "video".
        num_tokens: N, the tokens it had.
        indices: (K,) long, rising: the tokens it has now.
        importance_retained: scalar in [0, 1], share of the importance that the kept tokens hold.
        coverage: scalar in [0, 1], how well the kept tokens stand for all.
        grid: rows and columns of the N tokens, None where they form no raster.
        assignment: (N,) long, which of the K tokens stands for each of the N; None where nothing is assigned.
        mass: (K,) float32, how many tokens each of the K stands for; None where nothing is assigned.
        mixture: how generated tokens were made, as a batch of one; None where tokens were selected, and `indices` are
            then those tokens, else the places that the generated ones take.
    """

    modality: str
    num_tokens: int
    indices: Tensor
    importance_retained: Tensor
    coverage: Tensor
    grid: tuple[int, int] | None
    assignment: Tensor | None = None
    mass: Tensor | None = None
    mixture: Mixture | None = None

    def tokens(self, features: Tensor) -> Tensor:
        """The K tokens (K, D) of one level of the unit's features (N, D)."""
        if len(self.indices) == len(features):
            return features
        return features[self.indices] if self.mixture is None else self.mixture.of(features.unsqueeze(0)).squeeze(0)


def encode(
    stock: Callable[..., Any],
    family: Family,
    config: TokenPrunerConfig,
    pictures: Pictures,
    question: Callable[[list[Unit]], Tensor] | None = None,
) -> Any:
    """Run a stock feature function and keep what the config says of its output.

    Args:
        stock: `get_image_features` or `get_video_features`, bound to the model.
        family: the family of the model.
        config: method, budget and their settings.
        pictures: the call.
        question: from units to (U, 1, D) text of their prompts, needed if `config.question_weight` > 0.

    Returns:
        The stock output, with `pooler_output` (and `deepstack_features`) reduced in the same container, and a list of
        `KeptUnit` as its attribute `kept`.
    """
    units = family.units(pictures)
    prunes = any(config.tokens_to_keep(unit.n) < unit.n for unit in units)
    source = family.source(pictures.base, pictures.modality, config.importance) if prunes else None
    arguments = {**pictures.arguments, "return_dict": True}
    scores = None
    if source is None:
        output = stock(**arguments)
    else:
        with family.attention(pictures, source) as watch:
            output = stock(**arguments)
        scores = family.scores(pictures, watch.result(), units)
    query = question(units) if question is not None and prunes else None
    features = split(output.pooler_output, units)
    output.kept = choose(features, units, scores, query, config, pictures.modality)
    output.pooler_output = repack(output.pooler_output, units, features, output.kept)
    levels = getattr(output, "deepstack_features", None)
    if levels is not None:
        output.deepstack_features = [repack(level, units, split(level, units), output.kept) for level in levels]
    return output


def split(container: Any, units: list[Unit]) -> list[Tensor]:
    """Features of every unit, (N_u, D), from a tensor (U, N, D) or from pieces that hold whole units."""
    flat = torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in container])
    return list(flat.split([unit.n for unit in units]))


def repack(container: Any, units: list[Unit], features: list[Tensor], kept: list[KeptUnit]) -> Any:
    """The kept tokens in a container like the one they came in: tensor, list or tuple of whole units."""
    tokens = [unit.tokens(x) for x, unit in zip(features, kept, strict=True)]
    if isinstance(container, Tensor):
        return torch.stack(tokens)
    pieces, at = [], 0
    for piece in container:
        end, length = at, 0
        while length < len(piece):
            length += units[end].n
            end += 1
        pieces.append(torch.cat(tokens[at:end]) if end > at else piece)
        at = end
    return type(container)(pieces)


def choose(
    features: list[Tensor],
    units: list[Unit],
    scores: list[Tensor] | None,
    query: Tensor | None,
    config: TokenPrunerConfig,
    modality: str,
) -> list[KeptUnit]:
    """What to keep of every unit; units laid out alike are chosen in one batch.

    Args:
        features: (N_u, D) of every unit.
        units: their layout.
        scores: (N_u,) importance of every unit, or None for what `config.importance` computes from features.
        query: (U, 1, D) or None.
        config: method, budget and their settings.
        modality: noted in the result.
    """
    alike: dict[Any, list[int]] = {}
    for i, unit in enumerate(units):
        layout = [None if part is None else part.numpy().tobytes() for part in (unit.groups, unit.newline)]
        alike.setdefault((unit.n, *layout), []).append(i)
    kept: list[Any] = [None] * len(units)
    for members in alike.values():
        unit = units[members[0]]
        stack = torch.stack([features[i].detach() for i in members])
        weights = None if scores is None else torch.stack([scores[i] for i in members]).to(stack.device)
        asked = None if query is None else query[members].to(stack.device)
        for i, one in zip(members, choose_alike(stack, unit, weights, asked, config, modality), strict=True):
            kept[i] = replace(one, grid=units[i].grid)
    return kept


@torch.no_grad()
def choose_alike(
    features: Tensor,
    unit: Unit,
    scores: Tensor | None,
    query: Tensor | None,
    config: TokenPrunerConfig,
    modality: str,
) -> list[KeptUnit]:
    """What to keep of units (U, N, D) of one layout."""
    k, n = config.tokens_to_keep(unit.n), unit.n
    if k == n:  # nothing to choose, and the greedy loop would be at its longest
        every, one = torch.arange(n, device=features.device), torch.ones((), device=features.device)
        ones = torch.ones(n, device=features.device)
        return [KeptUnit(modality, n, every, one, one, unit.grid, every, ones) for _ in features]
    groups = None if unit.groups is None else unit.groups.to(features.device)
    if unit.newline is not None:
        return choose_with_breaks(features, unit, scores, query, groups, config, modality)
    reduced = reduce_tokens(features, config, scores, query, groups)
    columns = (reduced.indices, reduced.report.importance_retained, reduced.report.coverage)
    kept = [KeptUnit(modality, n, *row, unit.grid) for row in zip(*columns, strict=True)]
    for u, one in enumerate(kept):
        if reduced.assignment is not None and reduced.mass is not None:
            one.assignment, one.mass = reduced.assignment[u], reduced.mass[u]
        one.mixture = None if reduced.mixture is None else reduced.mixture.unit(u)
    return kept


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
    seeds = "id_pruner" if config.method in GENERATORS else config.method
    order = select_order(inner, replace(config, method=seeds, budget=min(k, len(tokens))), scores, query, groups)
    mask = keep_rows(tokens[order], row, newline, k)
    mixtures: list[Mixture | None] = [None] * len(features)
    if config.method in GENERATORS:
        for u, count in enumerate(mask[:, tokens].sum(1).tolist()):
            part = lambda values, u=u: None if values is None else values[u : u + 1]  # noqa: E731
            made = reduce_tokens(inner[u : u + 1], replace(config, budget=count), part(scores), part(query), groups)
            mixture = made.mixture or Mixture(made.indices, made.indices, torch.ones_like(inner[:1, :, 0]))
            mixtures[u] = mixture.with_breaks(tokens, row, newline, k)
            mask[u] = torch.zeros_like(mask[u]).scatter(0, mixtures[u].anchors[0], True)
    indices = mask.byte().sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    weights = token_importance(inner.float(), config, scores, query, None)
    columns = (indices, *meters(inner.float(), mask[:, tokens], weights, config))
    kept = [KeptUnit(modality, n, *values, unit.grid) for values in zip(*columns, strict=True)]
    for one, x, made_of in zip(kept, features, mixtures, strict=True):
        one.mixture = made_of
        if made_of is not None or config.size_aware:
            one.assignment = nearest_kept(x[None], one.indices[None])[0] if made_of is None else made_of.assignment[0]
            one.mass = mass(one.assignment[None], k)[0]
    return kept


def meters(features: Tensor, kept: Tensor, importance: Tensor, config: TokenPrunerConfig) -> tuple[Tensor, Tensor]:
    """Importance retained (U,) and coverage (U,) of `kept` (U, N) bool, whose number may differ between units."""
    p = shares(importance)
    order = kept.byte().sort(dim=1, descending=True, stable=True).indices[:, : int(kept.sum(1).max())]
    order = torch.where(kept.gather(1, order), order, order[:, :1])  # repeating a token leaves coverage as it is
    nearest = TokenKernel(features, config.kernel, None).rows(order).amax(1)
    coverage = (coverage_weights(p, config.coverage_mix, None) * nearest).sum(1)
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
