"""What a model card says about the method that trained the model."""

from __future__ import annotations

from pathlib import Path

from hf_efficient.files import card as files_card
from hf_efficient.methods import OPTIMIZATION
from hf_efficient.optimization.arguments import SAMArguments

HEADING = "### Sharpness-aware minimization"


def add_section(path: Path, arguments: SAMArguments) -> None:
    """Add the section and the tags to a model card, once."""
    files_card.add_section(path, HEADING, card_section(arguments), [arguments.method or "sam"])


def card_section(arguments: SAMArguments) -> str:
    """What a model card says about the method that trained the model."""
    defaults, method = SAMArguments().to_dict(), OPTIMIZATION.row(arguments.method or "sam")
    listed = {k: v for k, v in arguments.to_dict().items() if k == "rho" or v != defaults[k]} | {"method": method.name}
    lines = [
        f"Trained with `hf_efficient` ({method.source}):",
        *(f"- {k}: {v}" for k, v in listed.items()),
    ]
    return "\n".join(lines)
