"""Errors are written for Python; here their settings get the names and values that the shell knows."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from typing import Any

_VALUE = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\[[^\]]*\]|-?\w+(?:\.\d+)?(?:e[+-]?\d+)?"


def options_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, argparse.Action]:
    """Setting -> its option, of the command (and its action) that was called."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = action.choices.get(getattr(arguments, action.dest, ""))
            found |= options_of(chosen, arguments) if chosen is not None else {}
        elif action.option_strings:
            found[action.dest] = action
    return found


def for_the_shell(message: str, options: dict[str, argparse.Action]) -> str:
    """A message on one line, with `overwrite=True` as `--overwrite`, `budget=2.5` as `--budget 2.5`, and so on.

    Args:
        message: of an error.
        options: of `options_of`. Other names stay as they are.
    """
    line = " ".join(message.split())
    if not options:
        return line
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))

    def assigned(found: re.Match[str]) -> str:
        return _option(options[found["name"]], found["value"])

    line = re.sub(rf"`?(?<![\w.\-])(?P<name>{names})=(?P<value>{_VALUE})`?", assigned, line)
    # alone, only what cannot be a word of English
    alone = [name for name in options if "_" in name]
    quoted = rf"`(?P<quoted>{names})`"
    bare = rf"(?<![\w.\-/'\"])(?P<bare>{'|'.join(alone)})(?![\w(='\"/]|\.\w)" if alone else None
    line = re.sub(quoted, lambda found: options[found["quoted"]].option_strings[-1], line)
    return line if bare is None else re.sub(bare, lambda found: options[found["bare"]].option_strings[-1], line)


def _option(action: argparse.Action, value: str) -> str:
    name = action.option_strings[-1]
    try:
        meant: Any = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # nan, inf, or a word
        meant = value
    if action.nargs == 0:
        return name if meant is True else f"no {name}"
    if meant is None:
        return f"no {name}"
    if isinstance(meant, bool):
        return f"{name} {'yes' if meant else 'no'}"
    if isinstance(meant, list):
        separator = " " if action.nargs == "+" else ","
        return f"{name} {separator.join(map(str, meant))}".rstrip()
    return f"{name} {shlex.quote(str(meant))}"


def said(error: BaseException) -> str:
    """The text of an error; for one of the operating system, the file and the fault without the error number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename!r}: {error.strerror}"
    return str(error) or type(error).__name__
