"""The description of a finished bundle: bundle.json and the model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from hf_efficient.files import write_text
from hf_efficient.video.files.card import model_card
from hf_efficient.video.files.manifest import read_manifest, source_to_json, write_manifest
from hf_efficient.video.files.reader import VideoInfo
from hf_efficient.video.measure.break_even import compare_with_bicubic, total_bytes, verdicts

logger = logging.get_logger(__name__)


def describe(
    draft: Path,
    stream: str,
    source: Path,
    info: VideoInfo,
    config: dict[str, Any],
    device: torch.device,
    frames: int,
    write: Callable[..., None] = write_manifest,
    **fields: Any,
) -> None:
    """Write bundle.json and the card of a draft that has all its other files. Warn if it does not break even.

    Args:
        draft: the folder.
        stream: name of its low-resolution video.
        source: the video it was made from.
        info: its properties.
        config: the model's.
        device: where the networks are run to compare them with bicubic enlargement.
        frames: how many the source has.
        write: what writes bundle.json.
        fields: further fields of bundle.json.
    """
    record = source_to_json(info, source, frames)
    write(draft, stream, record, **fields)
    write(draft, stream, record, **fields, compared=compare_with_bicubic(draft, source, info, device))
    manifest, notes = read_manifest(draft), [""]
    for _ in range(3):  # the card gives its own size
        write_text(draft / "README.md", model_card(manifest, config, notes))
        notes = verdicts(manifest, total_bytes(draft))
    for sentence in notes:
        logger.warning(sentence)
