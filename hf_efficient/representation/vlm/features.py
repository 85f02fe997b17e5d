"""From the features of an encoder to those of the kept tokens, unit by unit, whatever container they come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.checks import asked_of_groups
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.generator import TokenGenerator
from hf_efficient.representation.maths.sharing import information, share_budget
from hf_efficient.representation.reduce import reduce_tokens
from hf_efficient.representation.vlm.families import towers
from hf_efficient.representation.vlm.families.counting import taken
from hf_efficient.representation.vlm.families.family import Family, Unit, VisualInputs, flat
from hf_efficient.representation.vlm.families.patch_map import Unclear

from .copies import among_all, encoded, units_of
from .grouped import warn_ungrouped
from .kept import KeptUnit
from .line_breaks import choose_with_breaks
from .memory import memory_of


def encode(
    stock: Callable[..., Any],
    family: Family,
    config: TokenPrunerConfig,
    images: VisualInputs,
    question: Callable[[list[Unit]], Tensor] | None = None,
    rows: list[int] | None = None,
) -> Any:
    """Run a stock feature function and keep what the config says of its output.

    Args:
        stock: `get_image_features` or `get_video_features`, bound to the model.
        family: the family of the model.
        config: method, budget and their settings.
        images: the call.
        question: from units to (U, 1, D) text of their prompts, needed if `config.question_weight` > 0.
        rows: prompt of every unit, needed if `config.adaptive`.

    Returns:
        The stock output, with `pooler_output` (and `deepstack_features`) reduced in the same container, and a list of
        `KeptUnit` as its attribute `kept`.
    """
    whole = units_of(family, images, config)
    units, budgets = [encoded(unit) for unit in whole], [unit.budget(config) for unit in whole]
    if any(unit.copies is not None for unit in whole):
        images = family.without_copies(images, whole)
    prunes = any(budget < unit.n for unit, budget in zip(units, budgets, strict=True))
    source = family.source(images.base, images.modality, config.importance_source) if prunes else None

    before = taken(images)  # what it was counted by, if it had to be encoded for that

    def look() -> tuple[Any, list[Tensor] | None]:
        arguments = {**images.arguments, "return_dict": True}
        if source is None:
            return stock(**arguments) if before is None else before, None
        with family.attention(images, source) as watch:
            output = stock(**arguments)
        try:
            return output, family.scores(images, watch.result(), units)
        except Unclear as error:
            if config.importance_source != "auto":
                raise
            towers.choose_source("auto", (), str(error), type(images.base).__name__)  # says so, once
            return output, None

    memory = memory_of(images.base)
    output, scores = look() if memory is None else memory.recall(images, source, look)
    query = question(whole) if question is not None and prunes else None
    features = split(output.pooler_output, units)
    if config.adaptive and rows is not None:
        budgets = shared_budgets(features, rows, budgets)
    compared = features if config.features == "projected" else list(family.encoded(images, output))
    kept = choose(compared, units, scores, query, config, images.modality, budgets)
    output.pooler_output = repack(output.pooler_output, units, features, kept, config.generator)
    levels = getattr(output, "deepstack_features", None)
    if levels is not None:
        output.deepstack_features = [repack(level, units, split(level, units), kept) for level in levels]
    output.kept = [among_all(one, unit) for one, unit in zip(kept, whole, strict=True)]
    return output


def shared_budgets(features: list[Tensor], rows: list[int], budgets: list[int]) -> list[int]:
    """The budgets of the units of every prompt, shared among them by what there is to see; each keeps one at least."""
    shared = list(budgets)
    for row in set(rows):
        members = [i for i, r in enumerate(rows) if r == row]
        weights = torch.stack([information(features[i].detach()[None])[0] for i in members])
        most = torch.tensor([len(features[i]) for i in members], device=weights.device)
        given = share_budget(weights[None], most, sum(budgets[i] for i in members), least=1)[0].tolist()
        for i, count in zip(members, given, strict=True):
            shared[i] = count
    return shared


def split(container: Any, units: list[Unit]) -> list[Tensor]:
    """Features of every unit, (N_u, D), from a tensor (U, N, D) or from pieces that hold whole units."""
    return list(flat(container).split([unit.n for unit in units]))


def repack(
    container: Any,
    units: list[Unit],
    features: list[Tensor],
    kept: list[KeptUnit],
    generator: TokenGenerator | None = None,
) -> Any:
    """The kept tokens in a container like the one they came in: tensor, list or tuple of whole units."""
    tokens = [unit.tokens(x, generator) for x, unit in zip(features, kept, strict=True)]
    if isinstance(container, Tensor):
        # of uneven units every row is one token, so that generate() can tell which prompt it belongs to
        return torch.stack(tokens) if len({len(unit) for unit in tokens}) == 1 else torch.cat(tokens)[:, None]
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
    budgets: list[int],
) -> list[KeptUnit]:
    """What to keep of every unit; units laid out alike, with equal budgets, are chosen in one batch.

    Args:
        features: (N_u, D) of every unit, what its tokens are compared by.
        units: their layout.
        scores: (N_u,) importance of every unit, or None for what `config.importance` computes from features.
        query: (U, 1, D) or None.
        config: method, budget and their settings.
        modality: noted in the result.
        budgets: tokens to keep of every unit.
    """
    alike: dict[Any, list[int]] = {}
    for i, unit in enumerate(units):
        layout = [None if part is None else part.numpy().tobytes() for part in (unit.groups, unit.newline)]
        alike.setdefault((unit.n, budgets[i], *layout), []).append(i)
    kept: list[Any] = [None] * len(units)
    for members in alike.values():
        unit = units[members[0]]
        if budgets[members[0]] < unit.n:
            warn_ungrouped(config, unit.groups, modality)
        stack = torch.stack([features[i].detach() for i in members])
        weights = None if scores is None else torch.stack([scores[i] for i in members]).to(stack.device)
        asked = None if query is None else query[members].to(stack.device)
        # settings that have no part in the choice are left out
        exact = replace(config, budget=budgets[members[0]], generator=None, merge_copies=None)
        if modality == "image":  # its tiles show different places
            exact = replace(exact, merge_static=0.0)
        for i, one in zip(members, choose_alike(stack, unit, weights, asked, exact, modality), strict=True):
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
    if groups is None and asked_of_groups(config):
        groups = torch.zeros(n, dtype=torch.long, device=features.device)  # all are of one
    if unit.newline is not None:
        return choose_with_breaks(features, unit, scores, query, groups, config, modality)
    reduced = reduce_tokens(features, config, scores, query, groups)
    columns = (reduced.indices, reduced.report.importance_retained, reduced.report.coverage)
    kept = [KeptUnit(modality, n, *row, unit.grid) for row in zip(*columns, strict=True)]
    for u, made in enumerate(kept):
        if reduced.assignment is not None and reduced.mass is not None:
            made.assignment, made.mass = reduced.assignment[u], reduced.mass[u]
        made.mixture = None if reduced.mixture is None else reduced.mixture.unit(u)
    return kept
