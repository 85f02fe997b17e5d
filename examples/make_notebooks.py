"""Notebooks out of the scripts beside them: `python -m examples.make_notebooks` writes examples/notebooks/*.ipynb.

A script is cut at its `# %%` lines; `# %% [markdown]` cells are comments.
"""

import json
import re
from pathlib import Path
from typing import Any

from hf_efficient.files import write_text

FOLDER = Path(__file__).parent / "notebooks"
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells(script: str) -> list[dict[str, Any]]:
    """Cells of a script, as a notebook's JSON has them."""
    parts = CELL.split(script)[1:]
    made = []
    for number, (mark, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        source = re.sub(r"^# ?", "", text, flags=re.MULTILINE) if mark else text
        cell: dict[str, Any] = {"cell_type": "markdown" if mark else "code", "id": f"cell-{number}", "metadata": {}}
        cell["source"] = source.strip("\n").splitlines(keepends=True)
        made.append(cell if mark else cell | {"execution_count": None, "outputs": []})
    return made


def notebook(script: str) -> str:
    """The notebook of a script, as text."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells(script), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all notebooks."""
    for script in sorted(FOLDER.glob("*.py")):
        write_text(script.with_suffix(".ipynb"), notebook(script.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
