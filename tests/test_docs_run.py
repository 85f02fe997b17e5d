"""The Python of the pages runs, each piece after those before it on its page, in the worlds of `page_worlds.py`."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.page_worlds import IN_THE_INDEX, NOT_RUN, REPLACED, WORLDS, everyday

#: README.md runs in test_readme.py, docs/adding.md in test_adding.py.
PAGES = [
    page
    for pattern in ("docs/**/*.md", "model_cards/*.md")
    for page in sorted(ROOT.glob(pattern))
    if "```python" in page.read_text(encoding="utf-8") and page.name != "adding.md"
]


def pieces(page: Path) -> dict[str, str]:
    """Page and number -> code, with what a test exchanges."""
    found = re.findall(r"^ *```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    name = page.relative_to(ROOT).as_posix()
    codes = {f"{name}-{i}": textwrap.dedent(code) for i, code in enumerate(found)}
    for written, run in (REPLACED | (IN_THE_INDEX if page.name == "paper_index.md" else {})).items():
        codes = {where: code.replace(written, run) for where, code in codes.items()}
    return codes


@pytest.mark.filterwarnings("ignore:topology='bidst' will exchange no weight")  # in the few steps of this test
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for where, code in pieces(page).items():
        if where in NOT_RUN:
            continue
        folder = tmp_path / where.rpartition("-")[2]
        folder.mkdir()
        monkeypatch.chdir(folder)
        world = WORLDS.get(where) or WORLDS[where.rpartition("-")[0]]
        names |= everyday() | world(folder)
        exec(compile(code, where, "exec"), names)


def test_what_is_not_run_is_there_and_few() -> None:
    every = {where for page in PAGES for where in pieces(page)}
    assert set(NOT_RUN) <= every
    assert len(NOT_RUN) <= len(every) / 10
    for why in NOT_RUN.values():
        assert (ROOT / re.findall(r"tests/[\w/.]+", why)[0]).exists()
    assert {where.rpartition("-")[0] if where[-1].isdigit() else where for where in WORLDS} <= {
        page.relative_to(ROOT).as_posix() for page in PAGES
    }
