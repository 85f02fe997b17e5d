"""`hf-efficient completion`: what a shell reads to complete commands, options and choices."""

import argparse

from hf_efficient.extras import extra


def run(arguments: argparse.Namespace) -> None:
    """Print the script, which shtab makes of the parser.

    Raises:
        ImportError: shtab is not installed.
    """
    with extra():
        import shtab

    from . import build_parser

    print(shtab.complete(build_parser(), shell=arguments.shell))
