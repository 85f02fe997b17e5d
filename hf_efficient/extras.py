"""Optional libraries: where one is missing, the error says what installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = {
    "accelerate": ("training", "sparsity", "serving"),
    "av": ("video",),
    "constriction": ("video",),
    "diffusers": ("video",),
    "fastapi": ("serving",),
    "gradio": ("spaces",),
    "imageio_ffmpeg": ("video",),
    "matplotlib": ("plots", "video", "spaces"),
    "num2words": ("vlm", "video", "spaces"),
    "onnx": ("onnx",),
    "onnxruntime": ("onnx",),
    "onnxscript": ("onnx",),
    "openai": ("serving",),
    "peft": ("sparsity",),
    "shtab": ("completion",),
    "sklearn": ("spaces",),
    "torchvision": ("vlm", "video", "spaces"),
    "uvicorn": ("serving",),
}
"""Module -> the extras of setup.py that bring it. The one place where both are named."""


def installing(name: str) -> str:
    """What installs an extra."""
    return f"pip install 'hf-efficient[{name}]'"


class MissingExtra(ModuleNotFoundError):
    """An optional library is not installed. The message names it and the pip line that installs it."""

    def __init__(self, module: str, wanted: str | None = None) -> None:
        extras = LIBRARIES[module]
        chosen = wanted if wanted in extras else extras[0]
        super().__init__(f"{module} is not installed: {installing(chosen)}", name=module)


@contextmanager
def extra(name: str | None = None) -> Iterator[None]:
    """Around imports of optional libraries, and around what imports them: a missing one is named with its pip line.

    Args:
        name: the extra to name if it brings the library; else the library's first in `LIBRARIES`.

    Raises:
        MissingExtra: a library of `LIBRARIES` cannot be found in the block. Other errors go on as they are.
    """
    try:
        yield
    except MissingExtra:
        raise
    except (ImportError, RuntimeError) as error:  # transformers and diffusers wrap the error, the latter in another
        module = missing_library(error)
        if module is None:
            raise
        raise MissingExtra(module, name) from error


def missing_library(error: BaseException) -> str | None:
    """The library of `LIBRARIES` that an error, or one that it came from, could not find."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        root = (getattr(current, "name", None) or "").partition(".")[0]
        if isinstance(current, ModuleNotFoundError) and root in LIBRARIES:  # not: of another release
            return root
        current = current.__cause__ or current.__context__
    return _named_in(str(error)) if isinstance(error, ImportError) else None


def _named_in(message: str) -> str | None:
    """The library that an error of transformers' own names: "... requires the Torchvision library but it ..."."""
    if not any(mark in message for mark in ("requires", "required")):
        return None
    words = message.replace("`", " ").lower().split()
    return next((name for name in LIBRARIES if name in words), None)
