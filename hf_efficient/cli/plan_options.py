"""Options of `hf-efficient plan`, `apply`, `train` and `doctor`, without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hf_efficient.methods import REPRESENTATION

from .model_options import add_place
from .output import add_json
from .push import add_push
from .stdo_options import at_least_one

STEPS = 100  # of a training


def limit(text: str) -> tuple[str, str]:
    """NAME=AMOUNT."""
    name, equals, amount = text.partition("=")
    if not equals or not name or not amount:
        raise argparse.ArgumentTypeError(f"{text!r} is not a limit: NAME=AMOUNT, such as prefill_flops=60%")
    return name, amount


def positive(text: str) -> float:
    """A number > 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number > 0")
    return value


def add_plans(commands: Any) -> None:
    """The commands and their options."""
    plan = commands.add_parser("plan", help="find the best plan for a model that keeps limits on what it costs")
    plan.add_argument("model", help="folder or Hub id of a model, of pictures and text or of text alone")
    plan.add_argument("output", type=Path, help="folder to write the plan to")
    plan.add_argument(
        "--limit", type=limit, nargs="+", action="extend", required=True, metavar="NAME=AMOUNT",
        help="the most it may cost: prefill_seconds, prefill_flops, prefill_flops_nonzero, cache_bytes, file_bytes; "
        "training_bytes, step_seconds of a training step; amounts as 50%% (of now), 40MB, 3GFLOP, 200ms",
    )  # fmt: skip
    plan.add_argument("--methods", nargs="+", default=["id_pruner", "itg", "scope"], metavar="METHOD",
                      choices=REPRESENTATION.names,
                      help="selections of visual tokens that are tried (default: id_pruner itg scope)")  # fmt: skip
    plan.add_argument("--levers", nargs="*", choices=("sparsegpt", "wanda", "int8", "int4"),
                      default=["sparsegpt", "wanda", "int8", "int4"],
                      help="what may be done to weights (default: all four)")  # fmt: skip
    plan.add_argument("--batch-size", type=at_least_one, default=8, metavar="ROWS",
                      help="rows of the training step whose cost is limited (default: 8)")  # fmt: skip
    plan.add_argument("--steps", type=at_least_one, default=STEPS, help="steps of the training that is planned, as of "
                      f"train (default: {STEPS})")  # fmt: skip
    plan.add_argument("--prune", choices=("before", "after"), default="before",
                      help="prune weights before the training or after it (default: before)")  # fmt: skip
    plan.add_argument("--plot", type=Path, help="PNG file to draw quality over cost to")
    plan.set_defaults(module="hf_efficient.cli.plan")

    apply = commands.add_parser("apply", help="put a plan on a model and save both in one folder")
    apply.add_argument("model", help="folder or Hub id of a stock model")
    apply.add_argument("plan", help="folder or Hub id of a plan")
    apply.add_argument("output", type=Path, help="new folder to save to")
    add_push(apply)
    apply.set_defaults(module="hf_efficient.cli.apply")

    train = commands.add_parser("train", help="train a model under a plan; the same command again goes on")
    train.add_argument("model", help="folder or Hub id of a stock model")
    train.add_argument("plan", help="folder or Hub id of a plan")
    train.add_argument("output", type=Path, help="folder to save plan and trained model to")
    train.add_argument("--checkpoints", type=Path, help="folder of checkpoints (default: OUTPUT_checkpoints)")
    train.add_argument("--steps", type=at_least_one, default=STEPS, help=f"optimizer steps (default: {STEPS})")
    train.add_argument("--save-steps", type=at_least_one, default=20, help="steps between checkpoints (default: 20)")
    train.add_argument("--batch-size", type=at_least_one, default=8, help="rows a step (default: 8)")
    train.add_argument("--learning-rate", type=positive, default=1e-4, help="of AdamW (default: 0.0001)")
    train.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    add_push(train)
    train.set_defaults(module="hf_efficient.cli.train", goes_on=True)

    for parser in (plan, apply, train):
        parser.add_argument("--data", type=Path, help="folder of images with metadata.jsonl, or a file with a text a "
                            "line (default: the shipped images)")  # fmt: skip
        rows = 96 if parser is plan else 10_000 if parser is train else 64
        parser.add_argument("--rows", type=at_least_one, default=rows, help=f"the first so many (default: {rows})")
        add_place(parser)
        add_json(parser)

    doctor = commands.add_parser("doctor", help="what is installed, which methods can run here, what is untested")
    add_json(doctor)
    doctor.set_defaults(module="hf_efficient.cli.doctor")

    completion = commands.add_parser("completion", help="print a script that completes commands and options in a shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="for which shell")
    completion.set_defaults(module="hf_efficient.cli.completion")
