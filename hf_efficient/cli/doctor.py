"""`hf-efficient doctor`: what is installed, what can run here, and which versions nobody has tried."""

from __future__ import annotations

import argparse
import re
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Any

from hf_efficient.extras import LIBRARIES, installing
from hf_efficient.methods import KINDS

from .output import Content

#: What can be done -> modules that it needs.
USES = {
    "fewer visual tokens (demo, prune, report, plan)": ("torchvision", "num2words"),
    "flat minima in a Trainer": ("accelerate",),
    "sparse weights and adapters, pruning in one shot": ("peft", "accelerate"),
    "8-bit and 4-bit weights (bitsandbytes)": ("bitsandbytes", "accelerate"),
    "8-bit and 4-bit weights (torchao)": ("torchao", "accelerate"),
    "video (stdo)": ("av", "diffusers"),
    "serve": ("fastapi", "uvicorn", "openai"),
    "serve --engine vllm": ("vllm",),
    "eval": ("lmms_eval",),
    "plots": ("matplotlib",),
    "completion": ("shtab",),
}
#: Budget of the table of methods -> the use that all of them need.
NEEDED = {
    "representation": "fewer visual tokens (demo, prune, report, plan)",
    "optimization": "flat minima in a Trainer",
    "sparsity": "sparse weights and adapters, pruning in one shot",
    "video": "video (stdo)",
}


def run(arguments: argparse.Namespace) -> Content:
    """Print it as three tables."""
    found = examined()
    print(text_of(found))
    return found


def examined() -> dict[str, Any]:
    """Versions against what they were tested with, uses against what is installed, and methods."""
    uses = {use: [name for name in modules if find_spec(name) is None] for use, modules in USES.items()}
    return {
        "versions": {name: judged(name, bounds) for name, bounds in bounds_of().items()},
        "uses": {use: {"runs": not missing, "missing": missing} for use, missing in uses.items()},
        "methods": {
            method.name: {"budget": kind.budget, "runs": not uses[NEEDED[kind.budget.split()[0]]]}
            for kind in KINDS
            for method in kind.methods
            if kind.budget.split()[0] in NEEDED
        },
        "names of other libraries that are not as they were": unmet_names(),
    }


def bounds_of() -> dict[str, str]:
    """Distribution -> the versions that the package allows, of all extras but those of developers."""
    found: dict[str, str] = {}
    try:
        lines = requires("hf-efficient") or []
    except PackageNotFoundError:  # run from its source alone
        lines = []
    for line in lines:
        if (read := re.match(r"([\w.-]+)\s*([<>=!~,.\w\s]*)", line)) and 'extra == "dev"' not in line:
            found.setdefault(read[1].lower(), read[2].strip())
    return found


def judged(name: str, bounds: str) -> dict[str, str]:
    """What is installed of a distribution, and whether it is one that was tested."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return {"installed": "", "allowed": bounds, "verdict": "not installed"}
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(bounds).contains(installed, prereleases=True):
        return {"installed": installed, "allowed": bounds, "verdict": "outside of what was tested"}
    return {"installed": installed, "allowed": bounds, "verdict": "ok"}


def unmet_names() -> list[str]:
    """Private names of libraries that are gone or take other parameters; [] where all are as they were read."""
    from hf_efficient.compat.names import READ_IN, changes

    return [line for library in READ_IN for line in changes(library)]


def pip_line(missing: list[str]) -> str:
    """What installs all of these modules, if one of our extras does; else nothing."""
    extras = [LIBRARIES.get(name, ()) for name in missing]
    shared = [name for name in extras[0] if all(name in others for others in extras)]
    return f": {installing(shared[0])}" if shared else ""


def text_of(found: dict[str, Any]) -> str:
    """For people."""
    lines = ["versions"]
    for name, row in sorted(found["versions"].items()):
        lines.append(f"  {name:<18} {row['installed'] or '-':<14} {row['allowed']:<14} {row['verdict']}")
    lines.append("\nwhat can run here")
    for use, row in found["uses"].items():
        lines.append(f"  {'yes' if row['runs'] else 'no ':<4} {use}" + (
            "" if row["runs"] else f"  (missing: {', '.join(row['missing'])}{pip_line(row['missing'])})"))  # fmt: skip
    lines.append("\nmethods")
    for budget in sorted({row["budget"] for row in found["methods"].values()}):
        of = {name: row["runs"] for name, row in found["methods"].items() if row["budget"] == budget}
        lines.append(f"  {budget}: {sum(of.values())} of {len(of)} can run")
    gone = found["names of other libraries that are not as they were"]
    lines.append("\n" + ("names of other libraries: all as they were read" if not gone else "\n".join(gone)))
    return "\n".join(lines)
