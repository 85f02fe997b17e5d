"""Stock model and processor for a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_vlm(model_id: str | Path) -> tuple[Any, Any]:
    """Model (in evaluation mode) and processor of a folder or Hub id, without a progress bar of their own.

    Raises:
        FileNotFoundError: the folder does not hold a model.
        OSError: there is neither such a folder nor such a model on the Hub.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    if Path(model_id).is_dir() and not (Path(model_id) / "config.json").is_file():
        raise FileNotFoundError(f"No config.json in {str(model_id)!r}; expected a folder saved by save_pretrained.")
    logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(model_id)
    return AutoModelForImageTextToText.from_pretrained(model_id).eval(), processor
