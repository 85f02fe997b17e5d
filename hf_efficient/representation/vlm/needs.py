"""What models with fewer visual tokens need of transformers; the rest of the package works with older ones."""

from __future__ import annotations

#: the first release with `ProcessorMixin.replace_image_token` and `forward(..., mm_encoder_outputs=...)`
NEEDED = (5, 23)


def check_transformers(what: str) -> None:
    """Raise where the installed transformers is too old for models with fewer visual tokens.

    Args:
        what: the function that was called.

    Raises:
        ImportError: it is.
    """
    from transformers import __version__

    if tuple(int(part) for part in __version__.split(".")[:2]) < NEEDED:
        needed = ".".join(map(str, NEEDED))
        raise ImportError(
            f"{what} needs transformers >= {needed}, and {__version__} is installed: pip install -U "
            f"'transformers>={needed}'. Where vLLM asks for an older one, vLLM itself serves the model (docs/vllm.md)."
        )
