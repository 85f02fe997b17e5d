"""The model card of a sparse checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from hf_efficient.files.card import PLACE, base_of, write_card

LOAD = f"""from hf_efficient import load_sparse

model = load_sparse("{PLACE}")"""


def write(folder: Path, model: nn.Module, zeros: float) -> None:
    """Write the card of a checkpoint, unless somebody's stands there.

    Args:
        folder: that was saved to.
        model: that was saved.
        zeros: share of its entries that are zero.
    """
    base = base_of(model)
    write_card(
        folder,
        f"{(base or type(model).__name__).rsplit('/', 1)[-1]}, sparse",
        f"{zeros:.1%} of its values are zero; `hf_efficient` stores the others, and where they stand.",
        LOAD if hasattr(model, "config") else LOAD.replace('")', '", model)'),
        library="hf_efficient",
        tags=["sparse", "sparse-checkpoint"],
        base=base,
        more="With `compressed=True` linear layers are made of sparse ones where that is faster on a CPU. "
        "`model.save_pretrained(folder)` writes what plain transformers loads.",
    )
