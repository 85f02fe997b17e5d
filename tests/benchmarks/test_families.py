"""What the card of a measuring instrument says of its families of questions."""

import json
from pathlib import Path

import pytest

from benchmarks.representation import families
from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    TINY_VLM,
    answer_questions,
    exact_match,
    load_evaluation_set,
    load_vlm,
)


def test_every_family_is_counted_as_by_plain_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens: `generate` of the stock model on the same questions. Blind: near what guessing gives."""
    argv = ["families", "--sets", str(EVALUATION_SET), "--scenes", "6", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    families.main()
    seen, blind = json.loads((tmp_path / "results.json").read_text())["rows"]

    asked = [(scene.image, q.question, q.answer, q.family)
             for scene in load_evaluation_set(EVALUATION_SET, 6) for q in scene.questions]  # fmt: skip
    images, questions, answers, kinds = zip(*asked, strict=True)
    rights = exact_match(answer_questions(*load_vlm(TINY_VLM), images, questions), answers)
    for kind, found in seen["families"].items():
        here = [right for right, other in zip(rights, kinds, strict=True) if other == kind]
        assert found == pytest.approx(sum(here) / len(here), abs=1e-4)
    assert blind["accuracy"] < seen["accuracy"] / 2

    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[2].split(" | ")[4:] == [*list(seen["families"])[:-1], f"{list(seen['families'])[-1]} |"]
    assert f"| {100 * seen['accuracy']:.1f} |" in table[4]
    assert ", blind | 6 |" in table[5]
    assert (tmp_path / "families.png").stat().st_size > 5000


def test_a_family_that_a_set_does_not_have_is_no_zero() -> None:
    row = {"row": "m, s", "asked": 1, "accuracy": 0.5, "interval": [0.4, 0.6], "families": {"what": 0.5}}
    assert families.table([row], ["what", "read"]).splitlines()[-1].endswith("| 50.0 | – |")
