"""Units whose copies are not encoded: as the encoder sees them, and what is kept of them among all their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.utils import logging

from hf_efficient.methods import FAMILIES
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.maths.copies import copied_from
from hf_efficient.representation.maths.mixture import mass
from hf_efficient.representation.vlm.families.family import Family, Unit, VisualInputs

from .kept import KeptUnit

logger = logging.get_logger(__name__)


def check_copies(config: TokenPrunerConfig, kind: str, family: Family) -> None:
    """Raise where copies are to be dropped in a family (`model_type` kind) whose encoder wants whole rasters."""
    if config.merge_copies is None or family.merges_copies:
        return
    able = [row.name for row in FAMILIES.methods if row.implementation.merges_copies]
    raise ValueError(
        f"merge_copies={config.merge_copies} drops patches before the encoder, and that of {kind!r} takes only whole "
        f"rasters; families that can: {', '.join(able)}. Set merge_copies=None."
    )


def units_of(family: Family, images: VisualInputs, config: TokenPrunerConfig) -> list[Unit]:
    """The units of a call, with their copies where the config wants these dropped.

    Raises:
        ValueError: copies are marked in the pixels, and the config wants all of an image encoded.
    """
    units = family.units(images)
    if not family.merges_copies:
        return units
    found = family.with_copies(images, units)
    if config.merge_copies is not None and images.modality == "image":
        warn_unmarked(images, found)
    if config.merge_copies is None and any(unit.copies is not None for unit in found):
        raise ValueError(
            "The pixels have copies marked by a processor with merge_copies, and the model prunes with "
            "merge_copies=None. Attach both with attach_token_pruner(model, processor, config), and process the images "
            "again."
        )
    return found


def warn_unmarked(images: VisualInputs, units: list[Unit]) -> None:
    """Say once that images repeat their cells and no processor has marked that, so that nothing of them is merged.

    It is no error: cells that differed when the processor looked can be equal after a cast to 16 bits.
    """
    cells = images.pixels.reshape(sum(unit.n for unit in units), -1)
    for unit, own in zip(units, cells.split([unit.n for unit in units]), strict=True):
        if unit.copies is None and unit.grid is not None and bool(copied_from(own.view(*unit.grid, -1)).any()):
            logger.warning_once(
                "merge_copies merges nothing of an image whose cells repeat: no copies are marked in its pixels. Make "
                "them by the processor that was attached with the model, or use prune_inputs on a stock model."
            )


def marked(family: Family, images: VisualInputs, config: TokenPrunerConfig, processor: Any) -> VisualInputs:
    """The call with the copies in its images marked, for pixels that no attached processor has seen.

    Raises:
        ValueError: the config asks for near copies, and there is no processor to say how pixels were normalized.
    """
    grids = images.arguments.get("image_grid_thw")
    if config.merge_copies is None or images.modality != "image" or grids is None:
        return images
    if config.merge_copies and processor is None:
        raise ValueError(
            f"merge_copies={config.merge_copies} is a difference of pixel values, and the inputs hold them as the "
            "processor normalized them: pass it too, as prune_inputs(model, inputs, config, processor)."
        )
    divisors = divisors_of(processor.image_processor, {}) if config.merge_copies else (1.0,)
    pixels, side = images.pixels.clone(), images.base.visual.spatial_merge_size
    rows = pixels.split([time * height * width for time, height, width in grids.tolist()])
    for image, grid in zip(rows, grids.tolist(), strict=True):
        family.mark_copies(image, grid, side, config.merge_copies, divisors)
    return replace(images, arguments={**images.arguments, "pixel_values": pixels})


def mark_image(
    family: Family, processor: Any, inputs: Any, index: int, tolerance: float, settings: dict[str, Any]
) -> int:
    """Mark the copies of one image in what a processor made of several, in place; how many cells are none.

    `settings` are those of the processor's call, which go before its own.
    """
    grids = torch.as_tensor(inputs["image_grid_thw"])
    counts = grids.prod(-1)
    start, length = int(counts[:index].sum()), int(counts[index])
    pixels = torch.as_tensor(inputs["pixel_values"])[start : start + length]  # a view, of an array as well
    about = processor.image_processor
    return family.mark_copies(pixels, grids[index].tolist(), about.merge_size, tolerance, divisors_of(about, settings))


def divisors_of(image_processor: Any, settings: dict[str, Any]) -> Sequence[float]:
    """What pixel values are divided by, of every channel or one number for all; `settings` of the call go first."""
    normalized, std = (settings.get(name, getattr(image_processor, name)) for name in ("do_normalize", "image_std"))
    return (1.0,) if not normalized else (std,) if isinstance(std, (int, float)) else std


def encoded(unit: Unit) -> Unit:
    """A unit as the encoder sees it: the tokens alone that are no copies."""
    if unit.copies is None:
        return unit
    return Unit(unit.encoded)  # no raster any more; an image has no groups and no line breaks


def among_all(kept: KeptUnit, unit: Unit) -> KeptUnit:
    """What was kept of the encoded tokens of a unit, said of all its tokens; copies count for what stands for them."""
    if unit.copies is None:
        return kept
    places, stand_in = (x.to(kept.indices.device) for x in (unit.copies.cells, unit.copies.stand_in))
    assignment = counts = None
    if kept.assignment is not None:
        assignment = kept.assignment[stand_in]
        counts = mass(assignment[None], len(kept.indices))[0]
    return replace(
        kept, num_tokens=unit.n, indices=places[kept.indices], grid=unit.grid, assignment=assignment, mass=counts
    )
