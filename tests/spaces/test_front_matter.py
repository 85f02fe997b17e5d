"""The head of a Space's README is what the Hub reads, and names the gradio that the tests run."""

from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from tests.conftest import ROOT
from tests.spaces.front_matter import front_matter_errors

SPACES = sorted(path.parent for path in (ROOT / "spaces").glob("*/app.py"))


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.name)
def test_front_matter(space: Path) -> None:
    assert front_matter_errors(space) == []
    version = SpaceCard.load(space / "README.md").data.sdk_version
    assert f"\ngradio=={version}\n" in (ROOT / "constraints.txt").read_text()


def test_there_are_spaces() -> None:
    assert len(SPACES) >= 4


def test_front_matter_check_finds_mistakes(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\ntitle: x\nemoji: ab\ncolorFrom: orange\ncolorTo: red\nsdk: gradio\nsdk_version: 6.31\ncolour: red\n---\n"
    )
    errors = " ".join(front_matter_errors(tmp_path))
    for word in ("app_file is missing", "license is missing", "colour is no key", "colorFrom", "sdk_version", "emoji"):
        assert word in errors
