"""The command line: `hf-efficient demo | prune | serve | eval | report | plan | apply | train | doctor | ...`.

The parsers are built without torch, so that `--help` and a mistyped option answer at once; a command's own module is
imported when it runs.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from hf_efficient import __version__
from hf_efficient.extras import extra
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.config_checks import Difference

from .examples import add_examples
from .messages import for_the_shell, options_of, said
from .model_options import add_dtype, add_place
from .output import add_json, carried_out
from .plan_options import add_plans
from .push import add_push
from .report_options import add_report
from .serve_options import add_eval, add_serve
from .stdo_options import add_stdo, at_least_one

BUDGETS = (0.5, 0.25, 0.125, 0.06, 0.03)
YES, NO = ("yes", "true", "1"), ("no", "false", "0")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage block."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Nothing is left over: a command reports its own unknown arguments, and names its own help."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def budget(text: str) -> int | float:
    """A number of tokens ("64") or a share of them ("0.25", "1.0")."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tokens nor a share of them") from None


def yes_or_no(text: str) -> bool:
    """True of yes, true and 1, False of no, false and 0."""
    if text.lower() not in (*YES, *NO):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text.lower() in YES


def _add_pruner_options(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """One option for every setting of a token pruner that can be attached, with the help that the setting carries."""
    group = parser.add_argument_group("token pruner")
    readers: dict[str, Callable[[str], object]] = {
        "Budget": budget,
        "bool": yes_or_no,
        "bool | None": yes_or_no,
        "float": float,
        "float | None": float,
        "Difference | None": Difference,
        "int": int,
    }
    for setting in fields(TokenPrunerConfig):
        if setting.name not in (*leave_out, "adaptive", "generator"):
            kind = TokenPrunerConfig.__annotations__[setting.name]  # a field's may be resolved already
            several = kind == "list[int]"
            unset = "off" if kind == "Difference | None" else "by method"
            default = "none" if several else unset if setting.default is None else setting.default
            group.add_argument(
                f"--{setting.name.replace('_', '-')}",
                type=int if several else readers.get(kind, str),
                nargs="+" if several else None,
                default=argparse.SUPPRESS,  # what is not said is left to the config
                choices=setting.metadata.get("choices"),
                metavar=_metavar(setting.metadata, kind),
                help=f"{setting.metadata['help']} (default: {default})",
            )


def _metavar(metadata: Mapping[str, Any], kind: str) -> str | None:
    """What stands for a value in the help; None where argparse lists the choices."""
    if "choices" in metadata:
        return None
    return "{yes,no}" if kind.startswith("bool") else "VALUE"


def pruner_settings(arguments: argparse.Namespace) -> dict[str, object]:
    """The token pruner's settings, as given by a command's options."""
    given = vars(arguments)
    return {setting.name: given[setting.name] for setting in fields(TokenPrunerConfig) if setting.name in given}


def _add_demo(commands: Any) -> None:
    """`demo` with its options."""
    demo = commands.add_parser(
        "demo", help="compare a pruned vision-language model with the stock one, on questions about images"
    )
    demo.add_argument("--output", type=Path, default=Path("hf_efficient_demo"), help="folder for table and plots")
    demo.add_argument("--model", help="folder or Hub id of a model and its processor (default: the shipped one)")
    demo.add_argument("--data", type=Path, help="folder of images with metadata.jsonl (default: the shipped set)")
    demo.add_argument(
        "--budgets",
        dest="budget",
        type=budget,
        nargs="+",
        default=BUDGETS,
        metavar="BUDGET",
        help=f"numbers of tokens, or shares of them (default: {' '.join(map(str, BUDGETS))})",
    )
    demo.add_argument("--scenes", type=at_least_one, default=96, help="number of images to ask about (default: 96)")
    demo.add_argument(
        "--draw", type=at_least_one, default=6, help="number of images to draw the kept tokens on (default: 6)"
    )
    demo.add_argument("--batch-size", type=at_least_one, default=32, help="number of prompts in a batch (default: 32)")
    demo.add_argument("--all", action="store_true", help="also train flat and sparse networks, and play a video")
    add_place(demo)
    add_json(demo)
    _add_pruner_options(demo, leave_out=["budget"])
    demo.set_defaults(module="hf_efficient.cli.demo")


def _add_prune(commands: Any) -> None:
    """`prune` with its options."""
    prune = commands.add_parser("prune", help="attach a token pruner to a model and save it")
    prune.add_argument("model", help="folder or Hub id of a vision-language model and its processor")
    prune.add_argument("output", type=Path, help="new folder to save to")
    add_dtype(prune)
    add_json(prune)
    _add_pruner_options(prune)
    add_push(prune)
    prune.set_defaults(module="hf_efficient.cli.prune")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Imports neither torch nor transformers."""
    parser = _Parser(prog="hf-efficient", description="Do the same with less, on stock Hugging Face models.")
    parser.add_argument("--version", action="version", version=f"hf-efficient {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    _add_demo(commands)
    _add_prune(commands)
    add_serve(commands, _add_pruner_options)
    add_eval(commands, _add_pruner_options)
    add_report(commands, _add_pruner_options)
    add_plans(commands)
    add_stdo(commands)

    methods = commands.add_parser("methods", help="list all methods, or describe one")
    methods.add_argument("name", nargs="?", help="name of one method (default: list all)")
    methods.add_argument(
        "--paper-index", action="store_true", help="print the paper index: the arguments of each paper's method"
    )
    add_json(methods)
    methods.set_defaults(module="hf_efficient.cli.methods")

    env = commands.add_parser("env", help="print versions, for a bug report")
    add_json(env)
    env.set_defaults(module="hf_efficient.cli.env")
    add_examples(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0; 2 after an error (one line on stderr, no traceback), 3 where it is that no plan keeps a
        limit; 130 after an interrupt; 141 where the reader of the output has gone (`| head`), as of a program that the
        signal ends.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name or a sign that the locale cannot write is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
    except BrokenPipeError:
        return _drop_output(141)
    except SystemExit:  # --help, --version, a mistyped option
        if failed := _flush_output():
            return failed
        raise
    return _flush_output() or code


def _flush_output() -> int:
    """Write what is in the buffer while a failure can still be told; returns the exit code of one, or 0."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _drop_output(141)
    except OSError as error:
        print(f"hf-efficient: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        return _drop_output(2)
    return 0


def _run(argv: Sequence[str] | None) -> int:
    arguments, options, debug = None, {}, False
    try:
        parser = build_parser()
        arguments = parser.parse_args(argv)
        options, debug = options_of(parser, arguments), arguments.debug
        with extra():
            carried_out(import_module(arguments.module).run, arguments)
    except KeyboardInterrupt:
        goes_on = ": the same command again goes on from what was saved last"
        print("interrupted" + (goes_on if getattr(arguments, "goes_on", False) else ""), file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, (ValueError, OSError, ImportError))  # these name what to change
        prefix = "" if expected else f"{type(error).__name__}: "
        advice = "" if expected else " (hf-efficient --debug ... shows where)"
        command = f" {arguments.command}" if arguments else ""
        message = for_the_shell(said(error), options)
        print(f"hf-efficient{command}: error: {prefix}{message}{advice}", file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    return 0


def _drop_output(code: int) -> int:
    """Let what is left in the buffer go nowhere: the interpreter would fail on it once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
