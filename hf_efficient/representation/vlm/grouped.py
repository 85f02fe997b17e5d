"""Settings about tiles or frames inside a unit: refused where they can never act, said once where they do not."""

from __future__ import annotations

from torch import Tensor
from transformers.utils import logging

from hf_efficient.representation.checks import asked_of_groups
from hf_efficient.representation.config import TokenPrunerConfig

logger = logging.get_logger(__name__)


def check_grouped(config: TokenPrunerConfig, kind: str, can: tuple[str, ...]) -> None:
    """Raise where settings about groups can never act: a family whose units hold no several tiles or frames.

    Args:
        config: method, budget and their settings.
        kind: the model's `model_type`.
        can: the settings that act in that family.
    """
    for name in asked_of_groups(config):
        if name not in can:
            inside = "tiles or frames" if name == "min_group_share" else "frames"
            raise ValueError(
                f"{name}={getattr(config, name)} is about {inside} inside one unit, and a unit of {kind!r} never holds "
                f"several (docs/families.md). Set {name}=0.0."
            )


def warn_ungrouped(config: TokenPrunerConfig, groups: Tensor | None, modality: str) -> None:
    """Say once that settings about groups do nothing for an image or video of one tile or frame."""
    several = groups is not None and bool(groups.any())
    for name in asked_of_groups(config):
        if not several or (name == "merge_static" and modality == "image"):
            inside = "tiles or frames" if name == "min_group_share" else "frames"
            logger.warning_once(
                f"{name}={getattr(config, name)} does nothing for this {modality}: it has no {inside} to tell apart."
            )
