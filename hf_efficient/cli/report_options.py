"""Options of `hf-efficient report`."""

import argparse
from pathlib import Path
from typing import Any

from .model_options import add_place
from .output import add_json


def none_or_more(text: str) -> int:
    """A whole number >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)


def add_report(commands: Any, add_pruner_options: Any) -> None:
    """The command and its options."""
    report = commands.add_parser("report", help="what a model costs: weights, operations, time, tokens, cache")
    report.add_argument("model", nargs="?", help="folder or Hub id of a model (default: the shipped one)")
    report.add_argument("--image", type=Path, help="what a vision-language model is shown (default: a shipped scene)")
    report.add_argument(
        "--text", default="What is in the picture?", help="what it is asked; or what a text model reads"
    )
    report.add_argument(
        "--rows", type=none_or_more, default=12, help="kinds of modules listed, costliest first (default: 12)"
    )
    report.add_argument("--plot", type=Path, help="PNG file to draw to")
    add_place(report)
    add_json(report)
    add_pruner_options(report)
    report.set_defaults(module="hf_efficient.cli.report")
