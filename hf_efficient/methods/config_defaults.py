"""Defaults of a configuration's settings, read from its source: importing `BiDSTConfig` would import PEFT and torch."""

from __future__ import annotations

import ast
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def config_defaults(where: str) -> dict[str, Any]:
    """Setting -> default, of those whose default is a plain value.

    Args:
        where: "module:class" of a dataclass of this package.
    """
    module, _, name = where.partition(":")
    path = "/".join(module.split(".")[1:]) + ".py"
    tree = ast.parse(files("hf_efficient").joinpath(path).read_text(encoding="utf-8"))
    constants = _constants(tree)
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    defaults: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            for keyword in node.value.keywords:
                if keyword.arg == "default":
                    defaults[node.target.id] = _plain(keyword.value, constants)
    return defaults


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Name -> value, of the constants at the top of a module."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(target.elts, value.elts, strict=True) if both else [(target, value)]  # type: ignore[attr-defined]
            for name, constant in pairs:
                if isinstance(name, ast.Name) and isinstance(constant, ast.Constant):
                    found[name.id] = constant.value
    return found


def _plain(node: ast.expr, constants: dict[str, Any]) -> Any:
    return constants[node.id] if isinstance(node, ast.Name) else ast.literal_eval(node)
