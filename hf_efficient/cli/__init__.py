"""The command line: `hf-efficient demo | prune | env`.

The parsers are built without torch, so that `--help` and a mistyped option answer at once; a command's own module is
imported when it runs.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from hf_efficient import __version__


class CommandError(Exception):
    """A mistake of the user: its message is printed as one line on stderr, and the exit code is 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage block."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Imports neither torch nor transformers."""
    parser = _Parser(prog="hf-efficient", description="Do the same with less, on stock Hugging Face models.")
    parser.add_argument("--version", action="version", version=f"hf-efficient {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    env = commands.add_parser("env", help="print versions, for a bug report")
    env.set_defaults(module="hf_efficient.cli.env")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0, or 2 after a mistake of the user (one line on stderr, no traceback).
    """
    arguments = build_parser().parse_args(argv)
    try:
        import_module(arguments.module).run(arguments)
    except (CommandError, ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split())
        print(f"hf-efficient {arguments.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
