"""What the Hub asks of a Space's README, as far as it can be checked offline."""

import re
from pathlib import Path

from huggingface_hub import SpaceCard

COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
REQUIRED = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "app_file", "license"}
OPTIONAL = {"python_version", "pinned", "short_description", "suggested_hardware", "tags", "models", "datasets"}


def front_matter_errors(space: Path) -> list[str]:
    """Everything wrong with the front matter of a Space's folder."""
    values = SpaceCard.load(space / "README.md").data.to_dict()
    errors = [f"{key} is missing" for key in sorted(REQUIRED - set(values))]
    errors += [f"{key} is no key of a Space" for key in sorted(set(values) - REQUIRED - OPTIONAL)]
    checks = {
        "sdk": values.get("sdk") == "gradio",
        "sdk_version": isinstance(values.get("sdk_version"), str)
        and re.fullmatch(r"\d+\.\d+\.\d+", values["sdk_version"]) is not None,
        "python_version": re.fullmatch(r"3\.\d+", values.get("python_version", "3.11")) is not None,
        "app_file": (space / values.get("app_file", "app.py")).is_file(),
        "colorFrom": values.get("colorFrom") in COLOURS,
        "colorTo": values.get("colorTo") in COLOURS,
        "emoji": 1 <= len(values.get("emoji", "")) <= 2 and not values.get("emoji", "a").isascii(),
        "short_description": len(values.get("short_description", "")) <= 60,
        "pinned": isinstance(values.get("pinned", False), bool),
        "tags": all(isinstance(tag, str) for tag in values.get("tags", [])),
    }
    return errors + [f"{key}: {values.get(key)!r} is not valid" for key, good in checks.items() if not good]
