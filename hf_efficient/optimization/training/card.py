"""What a model card says about the method that trained the model."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from hf_efficient.files import write_text
from hf_efficient.methods import OPTIMIZATION
from hf_efficient.optimization.arguments import SAMArguments

HEADING = "### Sharpness-aware minimization"


def add_section(path: Path, arguments: SAMArguments) -> None:
    """Add the section and the tags to a model card, once."""
    card = ModelCard.load(path)
    if HEADING not in card.text:
        card.text = card.text.rstrip() + "\n\n" + card_section(arguments)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), "hf_efficient", arguments.method]))
    write_text(path, str(card))


def card_section(arguments: SAMArguments) -> str:
    """What a model card says about the method that trained the model."""
    defaults, method = SAMArguments().to_dict(), OPTIMIZATION.row(arguments.method or "sam")
    listed = {k: v for k, v in arguments.to_dict().items() if k == "rho" or v != defaults[k]} | {"method": method.name}
    lines = [
        HEADING,
        "",
        f"Trained with `hf_efficient` ({method.source}):",
        *(f"- {k}: {v}" for k, v in listed.items()),
    ]
    return "\n".join(lines) + "\n"
