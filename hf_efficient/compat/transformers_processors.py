"""transformers: what processors are asked that is no part of their public face."""

from __future__ import annotations

from typing import Any


def tokens_of_picture(processor: Any, width: int, height: int) -> int | None:
    """Placeholders that a processor, stock or with a token pruner, writes for a picture; None: its size does not tell.

    The picture itself need not be there: servers ask processors in this way.
    """
    try:
        counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width)]).num_image_tokens
    except (AttributeError, NotImplementedError, ValueError):
        return None
    return int(counts[0]) if counts else None
