"""The protocol gives every method the same, and the test reads off what the protocol named."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.harness.intervals import Bootstrap
from benchmarks.representation import equal_footing, grading, protocol
from benchmarks.representation.equal_footing import parser, setting_words, trained_rows
from benchmarks.representation.footing_statistics import decide, verdict, worth_of_sizes
from benchmarks.representation.grade_book import GradeBook
from benchmarks.representation.grading import scenes_of
from benchmarks.representation.protocol import COMPARISONS, RESIZED, Comparison
from hf_efficient import TokenPrunerConfig
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.evaluation.questions import TINY_VLM, Question, Scene
from tests.scene_vlm import make_scenes, save_vlm

PAGE = Path(protocol.__file__).with_name("protocol.md")
ATTENTION_READERS = {"id_pruner", "itg", "top_importance", "cdpruner", "idpruner_mmr", "id_selection", "vispruner",
                     "holov", "scope", "visionzip", "prumerge"}  # fmt: skip


def test_every_method_has_every_setting_it_supports() -> None:
    for row in REPRESENTATION.methods:
        for sizes in (True, False):
            settings = protocol.grid(row, sizes)
            configs = [TokenPrunerConfig(**one) for one in settings]
            assert {c.proportional_attention for c in configs} == {sizes}
            pairs = Counter((c.importance, c.positions) for c in configs)
            sources = ("cls", "received", "distinct", "norm") if "importance" in row.needs else ("auto",)
            assert {(s, p) for s in sources for p in ("original", "compact")} <= set(pairs), row.name
            names = [protocol.setting_name(one) for one in settings]
            assert len(set(names)) == len(names)
    assert {row.name for row in REPRESENTATION.methods if "importance" in row.needs} >= ATTENTION_READERS


def test_a_setting_is_chosen_by_its_mean_and_of_equals_the_papers_own() -> None:
    grid = protocol.grid(REPRESENTATION.row("vispruner"), sizes=False)
    assert (grid[0]["importance"], grid[0]["positions"]) == ("cls", "compact")
    assert protocol.grid(REPRESENTATION.row("itg"), sizes=True)[0]["importance"] == "distinct"
    level = {protocol.setting_name(one): {0.5: 0.6, 0.25: 0.6} for one in grid}
    assert protocol.choose(grid, level) == grid[0]
    level[protocol.setting_name(grid[3])] = {0.5: 0.8, 0.25: 0.41}
    assert protocol.choose(grid, level) == grid[3]
    level[protocol.setting_name(grid[3])] = {0.5: 0.8, 0.25: 0.39}
    assert protocol.choose(grid, level) == grid[0]


def test_rivals_are_of_the_same_class_and_never_ours() -> None:
    makers = {"feature_pooling", "visionzip", "prumerge", "tome"}
    for comparison in COMPARISONS:
        rivals = comparison.rivals()
        methods = {name.split(",")[0] for name in rivals}
        assert not methods & {"id_pruner", "itg"}
        assert {"scope", "spare", "uniform", "divprune"} <= methods
        assert bool(methods & makers) == (not comparison.real_tokens)
        assert (RESIZED in rivals) == (not comparison.real_tokens)
        assert any("with sizes" in name for name in rivals) == comparison.sizes
        assert any("without sizes" in name for name in rivals)


def graded(chance: float, seed: int, scenes: int = 120) -> list[list[bool]]:
    rng = np.random.default_rng(seed)
    return [[bool(rng.random() < chance) for _ in range(3)] for _ in range(scenes)]


def test_the_rival_is_the_best_on_validation_and_the_stricter_one_the_best_on_the_test() -> None:
    comparison = Comparison("t", "itg", sizes=True, real_tokens=True)
    here = {name: [graded(0.3, seed)] for seed, name in enumerate(comparison.rivals())}
    here[comparison.ours] = [graded(0.8, 99)]
    here["spare, with sizes"], here["scope, without sizes"] = [graded(0.6, 97)], [graded(0.7, 98)]
    validation = {name: {0.25: 0.1, 0.5: 0.2} for name in here} | {"spare, with sizes": {0.25: 0.9, 0.5: 0.1}}
    lead = decide(comparison, here, validation, 0.25, Bootstrap([3] * 120))
    for kind, rival in (("against_chosen", "spare, with sizes"), ("against_best", "scope, without sizes")):
        assert lead[kind]["rival"] == rival
        gaps = np.array(here[comparison.ours][0]).mean(1) - np.array(here[rival][0]).mean(1)
        assert lead[kind]["ahead"] == pytest.approx(gaps.mean(), abs=1e-4)
        half = 1.96 * gaps.std() / np.sqrt(len(gaps))
        assert lead[kind]["interval"] == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=0.012)
        assert lead[kind]["verdict"] == "ahead"
    assert [verdict({"interval": i}) for i in ([-0.2, -0.1], [-0.1, 0.1], [0.0, 0.1])] == ["behind", "level", "level"]


def test_what_sizes_are_worth_is_paired() -> None:
    sized, plain = graded(0.8, 1), graded(0.5, 2)
    worth = worth_of_sizes({"a": [sized], "b": [plain]}, {"m": ("a", "b")}, Bootstrap([3] * 120))["m"]
    assert worth["ahead"] == pytest.approx(np.mean(sized) - np.mean(plain), abs=1e-4)
    assert worth["interval"][0] < worth["ahead"] < worth["interval"][1]


def test_grades_of_a_method_whose_rule_changed_are_measured_again(tmp_path: Path) -> None:
    scenes = [Scene("s", Image.new("RGB", (1, 1)), (Question("q", "a", "f"),))]
    book = GradeBook(tmp_path / "g.json", scenes, {})
    for name in ("m itg cls compact plain 0.5", "m itg, compact 0.5", "m id_pruner default sized 0.5"):
        assert book(name, lambda: [[True]]) == [[True]]
    again = GradeBook(tmp_path / "g.json", scenes, {})
    again.forget(["itg", "spare"])
    assert again("m id_pruner default sized 0.5", lambda: [[False]]) == [[True]]
    assert again("m itg cls compact plain 0.5", lambda: [[False]]) == [[False]]
    assert again("m itg, compact 0.5", lambda: [[False]]) == [[False]]


def test_a_layout_that_there_is_not_is_named() -> None:
    with pytest.raises(SystemExit, match=r"'standrd' .* 'standard'"):
        scenes_of("standrd:1", 1)


def test_choose_then_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few methods and settings on a random VLM: what is chosen, measured, decided, and found again."""
    names = ("id_pruner", "itg", "spare", "tome")
    monkeypatch.setattr(REPRESENTATION, "methods", tuple(REPRESENTATION.row(name) for name in names))
    monkeypatch.setitem(protocol.GRID, "importance", ("distinct", "norm"))
    for name, budgets in (("CHOICE_BUDGETS", (0.25,)), ("BUDGETS", (0.5, 0.25))):
        monkeypatch.setattr(equal_footing, name, budgets)
    save_vlm(tmp_path / "vlm")
    folders = [str(make_scenes(tmp_path / name, scenes=2, seed=i)) for i, name in enumerate(("v", "w", "t"))]
    options = ["--model", str(tmp_path / "vlm"), "--validation", *folders[:2], "--output", str(tmp_path / "out")]
    choose, test = (
        parser().parse_args([step, *options, "--test-set", folders[2], "--trained", str(TINY_VLM / "refined")])
        for step in ("choose", "test")
    )
    with pytest.raises(SystemExit, match=r"chosen\.json is missing: run the step `choose` first"):
        equal_footing.test(test)
    equal_footing.choose(choose)
    chosen = json.loads((tmp_path / "out/chosen.json").read_text())
    assert set(chosen["grid"]) == {
        f"{settings} {positions} {size}"
        for settings in ("id_pruner distinct", "id_pruner norm", "itg distinct", "itg norm", "spare", "tome")
        for positions in ("original", "compact")
        for size in ("sized", "plain")
    }
    assert set(chosen["rows"]["tome, with sizes"]["accuracy"]) == {"0.5", "0.25"}
    books = {path: path.read_bytes() for path in (tmp_path / "out").glob("validation_*.json")}
    with monkeypatch.context() as patched:
        patched.setattr(grading, "grade", lambda *_: pytest.fail("measured again"))
        equal_footing.choose(choose)
    assert books == {path: path.read_bytes() for path in books}
    save_vlm(tmp_path / "other/vlm", seed=1)
    test.model = [str(tmp_path / "other/vlm")]
    with pytest.raises(SystemExit, match=r"chosen with other models: \{'vlm': '\w{16}'\} .* says \{'vlm': '\w{16}'\}"):
        equal_footing.test(test)
    assert not (tmp_path / "out/grades.json").exists()
    test.model = [*choose.model, *test.model]  # one training seed chose, both are tested
    equal_footing.test(test)
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["models"] == ["vlm", "vlm 1"]
    assert result["chosen with"] == ["vlm"]
    assert len(result["leads"]) == 2 * len(COMPARISONS)
    assert len(result["rows"]) == 2 * (len(chosen["rows"]) + 1)
    assert result["trained"] == ["itg (refined), trained"]
    test.chosen, test.output = tmp_path / "out/chosen.json", tmp_path / "seeds"
    equal_footing.test(test)
    assert json.loads((tmp_path / "seeds/results.json").read_text()) == result
    table = (tmp_path / "out/table.md").read_text()
    assert re.search(r"## Trained\n\n.*\n.*\n\| itg \(refined\), trained", table)
    assert "itg (refined)" not in table.split("## Trained")[0]


def test_what_stands_beside_a_row() -> None:
    assert setting_words({"method": "scope", "importance": "cls", "positions": "compact"}) == "cls, compact"
    assert setting_words({"method": "itg"}) == "as it comes"
    rows = trained_rows([TINY_VLM / "refined"])
    assert TokenPrunerConfig(**next(iter(rows.values()))).generator is not None


def test_the_page_says_what_the_protocol_holds() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for value in (*protocol.GRID["importance"], *protocol.VALIDATION, *(c.title for c in COMPARISONS)):
        assert value in text
    assert f"{protocol.VALIDATION_SCENES} scenes" in text
    assert ", ".join(f"{100 * budget:g}" for budget in protocol.BUDGETS) in text
