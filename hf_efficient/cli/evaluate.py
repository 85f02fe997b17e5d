"""`hf-efficient eval`: lmms-eval's benchmarks with a pruned model."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from hf_efficient.serving.in_place import run_in_place
from hf_efficient.serving.lmms_manifest import MODEL

from . import pruner_settings

GROUP = "lmms_eval.models"


def run(arguments: argparse.Namespace) -> None:
    """Become lmms-eval, with our model and its settings.

    Raises:
        ValueError: a setting is invalid.
        FileNotFoundError: there is no such folder.
        ImportError: lmms-eval is not installed, or not beside this package.
    """
    from hf_efficient.serving.choice import chosen_config

    chosen_config(arguments.model, pruner_settings(arguments), arguments.revision)  # raises before lmms-eval starts
    check_lmms_eval()
    run_in_place(lmms_command(arguments, pruner_settings(arguments)))


def lmms_command(arguments: argparse.Namespace, settings: dict[str, Any]) -> list[str]:
    """What is run.

    Args:
        arguments: of the command.
        settings: of the pruner that are given.
    """
    values = {"pretrained": arguments.model, "dtype": arguments.dtype, "revision": arguments.revision, **settings}
    pairs = [f"{name}={_written(value)}" for name, value in values.items() if value is not None]
    command = [sys.executable, "-m", "lmms_eval", "--model", MODEL, "--model_args", ",".join(pairs)]
    command += ["--tasks", arguments.tasks, "--batch_size", str(arguments.batch_size)]
    for option, value in (
        ("--limit", arguments.limit),
        ("--output_path", arguments.output),
        ("--device", arguments.device),
    ):
        command += [option, str(value)] if value is not None else []
    return [*command, *shlex.split(arguments.lmms_arguments or "")]


def _written(value: Any) -> str:
    """A value as lmms-eval reads it: a share keeps its point, so that 1.0 is all tokens and 1 is one."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)


def check_lmms_eval() -> None:
    """Raise unless lmms-eval is there and knows the model.

    Raises:
        ImportError: what to install.
    """
    if find_spec("lmms_eval") is None:
        raise ImportError(
            "lmms-eval is not installed: pip install lmms-eval hf-efficient, in an environment without the extra "
            "'video', whose av it does not take."
        )
    if MODEL not in {point.name for point in entry_points(group=GROUP)}:
        raise ImportError(
            f"lmms-eval does not know the model {MODEL!r}: pip install --no-deps --force-reinstall hf-efficient, in "
            "the environment of lmms-eval."
        )
