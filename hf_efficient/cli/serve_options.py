"""The options of `hf-efficient serve` and `hf-efficient eval`, without torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from hf_efficient.serving.limits import Limits

from .stdo_options import at_least_one

ENGINES = ("transformers", "vllm")


def port(text: str) -> int:
    """A port to listen at."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 0 to 65535 (0: a free one)")
    return int(text)


def number(text: str) -> int:
    """A whole number >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)


def add_serve(commands: Any, add_pruner_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command to the parser."""
    serve = commands.add_parser("serve", help="serve a pruned vision-language model as OpenAI's chat completions")
    serve.add_argument("model", help="folder or Hub id; the token_pruner_config.json in it holds, options override it")
    serve.add_argument(
        "--engine", choices=ENGINES, default="transformers", help="what generates (default: transformers)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    serve.add_argument("--port", type=port, default=8000, help="port to listen at, 0 for a free one (default: 8000)")
    serve.add_argument("--name", help="name that clients ask for (default: MODEL as it is given)")
    serve.add_argument("--revision", help="branch, tag or commit of a Hub id")
    serve.add_argument("--device", default="auto", help="such as cuda:0 or cpu (default: auto)")
    serve.add_argument("--dtype", default="auto", help="such as bfloat16 (default: auto, as the weights were saved)")
    serve.add_argument("--attention", help="attention implementation, such as sdpa (default: the model's)")
    serve.add_argument(
        "--stop-seconds",
        type=at_least_one,
        default=120,
        help="at SIGINT or SIGTERM, how long running requests may take to end (default: 120)",
    )
    serve.add_argument(
        "--vllm-arguments", metavar="TEXT", help='further ones of `vllm serve`, as in --vllm-arguments="--seed 3"'
    )
    serve.add_argument("--continuous-batching", action="store_true", help=argparse.SUPPRESS)  # refused with the reason
    limits = serve.add_argument_group("limits of a request (engine transformers)")
    for one in fields(Limits):
        name, help = f"--{one.name.replace('_', '-')}", one.metadata["help"]
        if isinstance(one.default, bool):
            limits.add_argument(name, action="store_true", help=help)
        elif one.default is None:
            limits.add_argument(name, type=Path, metavar="FOLDER", help=f"{help} (default: none are)")
        else:
            limits.add_argument(name, type=number, default=one.default, help=f"{help} (default: {one.default})")
    add_pruner_options(serve)
    serve.set_defaults(module="hf_efficient.cli.serve")


def add_eval(commands: Any, add_pruner_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command to the parser."""
    made = commands.add_parser("eval", help="measure a pruned vision-language model on benchmarks of lmms-eval")
    made.add_argument("model", help="folder or Hub id; the token_pruner_config.json in it holds, options override it")
    made.add_argument("--tasks", required=True, help="names of lmms-eval's tasks, separated by commas")
    made.add_argument("--limit", type=at_least_one, help="questions of each task (default: all)")
    made.add_argument("--batch-size", type=at_least_one, default=1, help="prompts that go together (default: 1)")
    made.add_argument("--output", type=Path, help="folder for the results of lmms-eval (default: only printed)")
    made.add_argument("--revision", help="branch, tag or commit of a Hub id")
    made.add_argument("--device", help="such as cuda:0 or cpu (default: an accelerator if there is one)")
    made.add_argument("--dtype", default="auto", help="such as bfloat16 (default: auto, as the weights were saved)")
    made.add_argument(
        "--lmms-arguments", metavar="TEXT", help='further ones of lmms-eval, as in --lmms-arguments="--log_samples"'
    )
    add_pruner_options(made)
    made.set_defaults(module="hf_efficient.cli.evaluate")
