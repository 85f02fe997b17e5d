"""What bundle.json records of the fit. No player needs it; it is checked all the same."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_efficient.reading import Fields, is_number, is_whole
from hf_efficient.video.routing import MOST_EXPERTS
from hf_efficient.video.settings import ALPHA, AUTO, INTERLACED, MOST_SCENES, FitSettings

MOST_CANDIDATES = 64


def check_fit_record(manifest: Fields) -> int | None:
    """Check what tables, cards and measurements read of a bundle's fit.

    Returns:
        How many networks it describes; None if it describes none.

    Raises:
        ValueError: a field is of another type or out of range.
    """
    if "fit" in manifest.values:
        fit = manifest.fields("fit")
        for name, choices in (("alpha", ALPHA), ("interlaced", INTERLACED)):
            if name in fit.values:
                fit.text(name, "|".join(choices))
        for field in dataclasses.fields(FitSettings):
            if field.name in fit.values and not _is_like(fit[field.name], field):
                raise fit.wrong(field.name, f"something like {field.default!r}")
    if "general_patch_psnr" in manifest.values:
        manifest.number("general_patch_psnr", finite=False)  # infinite where there is no error at all
    if "compared" in manifest.values:
        compared = manifest.fields("compared")
        compared.whole("frames", 1)
        for name in ("psnr", "psnr_bicubic"):
            compared.number(name, finite=False)
    if "candidates" in manifest.values:
        candidates = manifest.fields("candidates")
        candidates.text("taken"), candidates.whole("every", 1)
        for n, values in enumerate(candidates.items("scenes", MOST_SCENES) if "scenes" in candidates.values else []):
            scene = Fields(values, f"candidates: scenes: {n}")
            scene.whole("frame"), scene.text("by")
        for n, values in enumerate(candidates.items("rows", MOST_CANDIDATES)):
            row = Fields(values, f"candidates: {n}")
            row.text("name"), row.whole("bytes")
            for name in ("psnr", "psnr_luma"):
                row.number(name, finite=False)
    if "experts" not in manifest.values:
        return None
    experts = manifest.items("experts", MOST_EXPERTS)
    for n, values in enumerate(experts):
        expert = Fields(values, f"experts: {n}")
        expert.whole("patches"), expert.whole("steps"), expert.number("error_share", 0, 1)
        for name in ("psnr_float32", "psnr_stored"):
            expert.number(name, finite=False)
    return len(experts)


def _is_like(value: object, field: dataclasses.Field[Any]) -> bool:
    """Whether a recorded setting has the type of its default, or another type that the setting may have."""
    if isinstance(field.default, str):
        return isinstance(value, str) or (field.default == AUTO and is_whole(value))
    if isinstance(value, list) and field.name in ("num_features", "num_blocks"):
        return len(value) <= MOST_EXPERTS and all(map(is_whole, value))
    return is_whole(value) if is_whole(field.default) and field.name != "scale" else is_number(value)
