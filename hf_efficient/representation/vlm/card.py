"""The model card of a model with fewer visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_efficient.files.card import PLACE, base_of, write_card
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.config import TokenPrunerConfig

LOAD = f"""from hf_efficient import load_token_pruned

model, processor = load_token_pruned("{PLACE}")"""


def write(folder: Path, model: Any, config: TokenPrunerConfig) -> None:
    """Write the card of a model that is saved with its token pruner, unless somebody's stands there."""
    row, base = REPRESENTATION.row(config.method), base_of(model)
    kept = f"{config.budget} visual tokens" if isinstance(config.budget, int) else f"{config.budget:.4g} of the tokens"
    write_card(
        folder,
        f"{(base or type(model).__name__).rsplit('/', 1)[-1]}, with fewer visual tokens",
        f"`hf_efficient` keeps {kept} of each image, tile or frame by `{row.name}` ({row.source}). "
        "No weight was changed.",
        LOAD,
        library="transformers",
        tags=["token-pruning", row.name],
        base=base,
        pipeline="image-text-to-text",
        more="Plain transformers reads the stock model here, and keeps all tokens.",
    )
