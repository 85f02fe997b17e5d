"""Options of the commands that load a model, without torch: which one, where, in which type."""

from __future__ import annotations

import argparse
from typing import Any


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Which commit of the model, and the type of its weights."""
    parser.add_argument("--revision", help="branch, tag or commit of the model's Hub id")
    parser.add_argument("--dtype", default="auto", help="such as bfloat16 (default: auto, as the weights were saved)")


def add_place(parser: argparse.ArgumentParser) -> None:
    """The same, and where the model computes."""
    add_dtype(parser)
    parser.add_argument("--device", default="cpu", help="such as cuda:0 (default: cpu)")


def check_place(arguments: argparse.Namespace) -> None:
    """Refuse a dtype or device that there is not, before anything is loaded.

    Raises:
        ValueError: its name is not known, or it cannot be used here.
    """
    import torch

    from hf_efficient.reading import shown

    dtype = getattr(torch, arguments.dtype, None)
    if arguments.dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype={shown(arguments.dtype)} is not known; expected auto, float32, bfloat16 or float16.")
    device = getattr(arguments, "device", None)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={shown(device)} cannot be used here: {error}") from error


def of_the_hub(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `from_pretrained` of processors and configs is told."""
    return {} if arguments.revision is None else {"revision": arguments.revision}


def of_the_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `from_pretrained` of models is told."""
    return {**of_the_hub(arguments), "dtype": arguments.dtype}
