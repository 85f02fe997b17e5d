"""How a model's pieces of features and a prompt's runs of placeholders divide into units."""

from __future__ import annotations

from hf_efficient.representation.vlm.families.generic import Layout

from .refusal import Unproven


def layout_of(seen: list[tuple[list[int], list[int], int]]) -> Layout:
    """The layout that explains all of several calls: pieces of features, runs of placeholders and number of pictures.

    Raises:
        Unproven: none does.
    """
    pieces = {size for sizes, _, _ in seen for size in sizes}
    runs = {size for _, sizes, _ in seen for size in sizes}
    if all(sizes == lengths for sizes, lengths, _ in seen):
        return Layout(None)
    for alike in (pieces, runs):
        if len(alike) == 1 and min(alike) > 1 and not any(size % min(alike) for size in pieces | runs):
            return Layout(min(alike))  # a unit of one token would always stay whole
    if all(len(sizes) == shown for sizes, _, shown in seen):  # an image is a piece, and has several runs
        return Layout(None, one_run=False)
    sizes, lengths, shown = next(one for one in seen if one[0] != one[1])
    raise Unproven(
        "layout",
        f"of {shown} picture(s) the features come in pieces of {_some(sizes)} and the placeholders in runs of "
        f"{_some(lengths)}",
    )


def _some(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes[:6])) + (", ..." if len(sizes) > 6 else "")
