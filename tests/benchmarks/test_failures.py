"""Tables of failures: every rate as a plain loop over questions counts it, and a run on a random VLM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.representation import failures
from benchmarks.representation.failure_statistics import BINS, Said, Sheet
from benchmarks.representation.failures import AnswerBook, joined, parser, report, rows_of, usual
from benchmarks.representation.packed_turns import Answer
from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.evaluation.questions import Question, Scene
from tests.scene_vlm import make_scenes, save_vlm

MODELS = 2


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    image, rng = Image.new("RGB", (1, 1)), np.random.default_rng(3)
    asked = [Question("is there a bag ?", str(rng.choice(["yes", "no"])), "exists") for _ in range(90)]
    other = Question("where is the bag ?", "top", "where")
    return [Scene(str(i), image, (one, other)[: 1 + i % 2], f"p{i % 9}") for i, one in enumerate(asked)]


@pytest.fixture(scope="module")
def sheet(scenes: list[Scene]) -> Sheet:
    return Sheet(scenes)


def said(sheet: Sheet, seed: int) -> Said:
    rng, shape = np.random.default_rng(seed), (MODELS, len(sheet.family))
    return Said(rng.random(shape) < 0.7, rng.random(shape) < 0.4, rng.random(shape))


def counted(scenes: list[Scene], answers: Said, part, whole, times=None, models=range(MODELS)) -> float:
    """The share of `part` among `whole`, question by question; scenes and models as often as they are drawn."""
    up = down = 0
    for model in models:
        at = 0
        for number, scene in enumerate(scenes):
            for question in scene.questions:
                here = {name: getattr(answers, name)[model, at] for name in ("right", "yes", "confidence")}
                weight = 1 if times is None else times[number]
                if whole(question, here):
                    down += weight
                    up += weight * bool(part(question, here))
                at += 1
    return up / down


RATES = {
    "false_yes": (lambda q, a: a["yes"], lambda q, a: q.family == "exists" and q.answer == "no"),
    "missed": (lambda q, a: not a["yes"], lambda q, a: q.family == "exists" and q.answer == "yes"),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_are_counted_question_by_question(scenes: list[Scene], sheet: Sheet, name: str) -> None:
    answers = said(sheet, 1)
    found = getattr(sheet, name)(answers)
    assert found["value"] == pytest.approx(counted(scenes, answers, *RATES[name]), abs=1e-4)
    drawn = np.random.default_rng(1).multinomial(MODELS, [0.5, 0.5], len(sheet.bootstrap.counts))
    samples = [
        counted(scenes, answers, *RATES[name], times, [m for m in range(MODELS) for _ in range(shares[m])])
        for times, shares in list(zip(sheet.bootstrap.counts, drawn, strict=True))[:400]
    ]
    assert found["interval"] == pytest.approx(np.percentile(samples, [2.5, 97.5]), abs=0.03)


def test_a_smaller_image_is_asked_first(scenes: list[Scene], sheet: Sheet) -> None:
    answers, small = said(sheet, 1), said(sheet, 2)
    wrong = [(m, q) for m in range(MODELS) for q in range(len(sheet.family)) if not small.right[m, q]]
    found = sheet.hard(answers, small)
    assert found["questions"] == len(wrong)
    assert found["value"] == pytest.approx(np.mean([answers.right[key] for key in wrong]), abs=1e-4)
    assert sheet.hard(answers, answers)["value"] == 0
    perfect = Said(np.ones_like(small.right), small.yes, small.confidence)
    assert sheet.hard(answers, perfect) == {"value": None, "interval": None, "questions": 0}


def test_differences_are_of_the_same_questions(sheet: Sheet) -> None:
    one, other = said(sheet, 1), said(sheet, 2)
    found = sheet.difference(one.right, other.right, sheet.of(["where"]))
    where = sheet.family == "where"
    assert found["value"] == pytest.approx(one.right[:, where].mean() - other.right[:, where].mean(), abs=1e-4)
    assert found["interval"][0] < found["value"] < found["interval"][1]
    assert sheet.difference(one.right, one.right, where) == {"value": 0, "interval": [0, 0]}


def error_by_bins(confidence: np.ndarray, right: np.ndarray) -> float:
    """Guo et al.'s formula: sum over bins ((b-1)/15, b/15] of n_b / n |accuracy_b - confidence_b|."""
    total = 0.0
    for number in range(BINS):
        inside = (confidence > number / BINS) & (confidence <= (number + 1) / BINS)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_is_the_papers_formula(sheet: Sheet) -> None:
    answers = said(sheet, 4)
    found = sheet.calibration_error(answers)
    assert found["value"] == pytest.approx(error_by_bins(answers.confidence.ravel(), answers.right.ravel()), abs=1e-4)
    over = sheet.overconfidence(answers)
    assert over["value"] == pytest.approx(answers.confidence.mean() - answers.right.mean(), abs=1e-4)
    assert over["interval"][0] < over["value"] < over["interval"][1]


def test_calibration_where_it_is_known(sheet: Sheet) -> None:
    shape = (1, len(sheet.family))
    sure = Said(np.ones(shape, bool), np.zeros(shape, bool), np.ones(shape))
    assert sheet.calibration_error(sure)["value"] == 0
    wrong = Said(np.zeros(shape, bool), sure.yes, sure.confidence)
    assert sheet.calibration_error(wrong) == {"value": 1, "interval": [1, 1]}
    none = Said(np.ones(shape, bool), sure.yes, np.zeros(shape))
    assert sheet.calibration_error(none)["value"] == sheet.overconfidence(wrong)["value"] == 1
    assert sheet.overconfidence(none)["value"] == -1


def test_answers_on_disk_are_what_was_said(tmp_path: Path) -> None:
    rows = [[Answer("yes", True, 1.0, 0.25)], [Answer("no", False, 1.0, 0.5), Answer("yes", False, 1.0, 0.125)]]
    asked = [Scene("s", Image.new("RGB", (1, 1)), (Question("q", "a", "f"),) * n) for n in (1, 2)]
    first = AnswerBook(tmp_path / "a.json", asked, {"model": "m"})("m", lambda: rows)
    again = AnswerBook(tmp_path / "a.json", asked, {"model": "m"})("m", lambda: pytest.fail("asked again"))
    for found in (first, again):
        assert found.right.tolist() == [[True, False, False]]
        assert found.yes.tolist() == [[True, False, True]]
        assert found.confidence.tolist() == [[0.25, 0.5, 0.125]]
    assert joined([first, again]).yes.shape == (2, 3)
    with pytest.raises(SystemExit, match="another set of scenes"):
        AnswerBook(tmp_path / "a.json", asked[::-1], {"model": "m"})
    with pytest.raises(SystemExit, match="another model"):
        AnswerBook(tmp_path / "a.json", asked, {"model": "n"})


def test_rows_are_ours_as_they_come_and_others_as_chosen() -> None:
    settings = {"method": "scope", "importance": "norm", "positions": "compact", "proportional_attention": True}
    plain = {**settings, "proportional_attention": False}
    chosen = {"rows": {"scope, with sizes": {"settings": settings}, "scope, without sizes": {"settings": plain}}}
    rows = rows_of(["itg", "scope"], chosen)
    assert len(rows) == 8
    for (method, name, positions), values in rows.items():
        config = TokenPrunerConfig(**values)
        assert (config.method, config.positions) == (method, positions)
        assert config.proportional_attention == (name == "with sizes")
        assert config.importance == ("norm" if method == "scope" else "auto")
    assert [row[2] for row in rows if usual(row)] == ["original", "compact"] * 2


def test_chosen_settings_that_are_missing_are_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["failures", "--scenes", "1", "--chosen", str(tmp_path / "no.json"), "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr(failures, "ask", lambda *_: pytest.fail("asked as they come"))
    with pytest.raises(SystemExit, match=r"no\.json is missing"):
        failures.main()


def test_a_run_on_a_random_vlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vlm(tmp_path / "vlm")
    folder = make_scenes(tmp_path / "set", scenes=3)
    options = ["--model", str(tmp_path / "vlm"), "--evaluation-set", str(folder), "--output", str(tmp_path / "out")]
    words = ["failures", *options, "--methods", "itg", "--budgets", "0.125"]
    monkeypatch.setattr("sys.argv", words)
    failures.main()
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["tokens"] == {"0.125": 18}
    assert list(result["failures"]) == [
        "Many things (list)", "Hallucination", "Calibration", "What a smaller image gets wrong",
        "The second of two pictures",
    ]  # fmt: skip
    table = (tmp_path / "out/table.md").read_text()
    assert "Reading" not in table
    for label in ("all tokens", "resized image", "itg, with sizes", "itg, without sizes"):
        assert f"| {label} |" in table
    monkeypatch.setattr(failures, "answer_scenes", lambda *a, **k: pytest.fail("asked again"))
    failures.main()
    assert (tmp_path / "out/table.md").read_text() == table
    assert parser().parse_args([]).methods[:2] == ("id_pruner", "itg")


def test_places_are_shown_at_both_kinds_of_positions(scenes: list[Scene], sheet: Sheet) -> None:
    rows = rows_of(["itg", "scope"], None)
    keys: list[Any] = [("all tokens", 1.0, 1), ("all tokens", 1.0, 2), ("resized image", 0.25, 1)]
    keys += [(row, 0.25, pictures) for row in rows for pictures in (1, 2)]
    answers = {key: said(sheet, seed) for seed, key in enumerate(keys)}
    measured = failures.measure(sheet, answers, list(rows), [0.25])
    shown = dict(measured["Naming places (where)"][0.25])
    where = sheet.family == "where"
    for name in ("with sizes", "without sizes"):
        row = ("itg", name, "original" if name == "with sizes" else "compact")
        for positions in ("original", "compact"):
            right = answers[("itg", name, positions), 0.25, 1].right[:, where].mean()
            assert shown[row][positions]["value"] == pytest.approx(right, abs=1e-4)
        gap = shown[row]["original"]["value"] - shown[row]["compact"]["value"]
        assert shown[row]["original minus compact"]["value"] == pytest.approx(gap, abs=2e-4)
        both = [shown[method, *row[1:]]["original minus compact"]["value"] for method in ("itg", "scope")]
        mean = shown["mean of the methods", name, ""]["original minus compact"]
        assert mean["value"] == pytest.approx(sum(both) / 2, abs=2e-4)
        assert mean["interval"][0] <= mean["value"] <= mean["interval"][1]
    assert "original minus compact, 36 tokens" in report(measured, {0.25: 36})
