"""Budgets of requests: `mm_processor_kwargs={"token_budget": 32}` keeps fewer tokens than the engine's config does.

The budget is in vLLM's hash of a picture, like everything in these arguments. What it keeps at most was counted when
the engine started, so a request may ask for less alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig

#: the name of a request's budget
NAME = "token_budget"
MODALITIES = ("image", "video")


def without_budget(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a processor without ours."""
    return {name: value for name, value in given.items() if name != NAME}


def with_budget(config: TokenPrunerConfig, given: Mapping[str, Any]) -> TokenPrunerConfig:
    """The config that a request's pictures are pruned with.

    Raises:
        ValueError: its budget is none.
    """
    if NAME not in given:
        return config
    try:
        return replace(config, budget=given[NAME])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{NAME}={given[NAME]!r}; expected a whole number >= 1 or a share in (0, 1].") from error


def check_fewer(asked: TokenPrunerConfig, config: TokenPrunerConfig, n: int) -> int:
    """Tokens that a request keeps of a unit of `n`.

    Raises:
        ValueError: they are more than the engine counts with.
    """
    kept, most = asked.tokens_to_keep(n), config.tokens_to_keep(n)
    if kept > most:
        raise ValueError(
            f"{NAME}={asked.budget!r} keeps {kept} of {n} tokens, and the engine was started for {most} at most. Ask "
            "for fewer, or start it with a larger budget."
        )
    return kept


def field(modality: str) -> str:
    """Name of the argument that tells the model the budgets of its pictures or videos."""
    return f"{NAME}_{modality}"


def as_rows(budget: int | float, count: int) -> Tensor:
    """(count, 2) float64: the budget, and whether it is a share."""
    return torch.tensor([[float(budget), float(isinstance(budget, float))]], dtype=torch.float64).repeat(count, 1)


def taken(arguments: dict[str, Any]) -> tuple[dict[str, Any], list[int | float] | None]:
    """Arguments of `embed_multimodal` without ours, and budgets of its pictures; None: as the engine's config."""
    names = {field(modality) for modality in MODALITIES}
    plain = {name: value for name, value in arguments.items() if name not in names}
    for name in names & set(arguments):
        rows = arguments[name]
        rows = rows if isinstance(rows, Tensor) else torch.stack(list(rows))
        return plain, [value if share else int(value) for value, share in rows.reshape(-1, 2).tolist()]
    return plain, None
