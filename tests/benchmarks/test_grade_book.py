"""What is stored of one model, config or set of scenes is never taken for that of another of the same name and size."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.representation import where_tokens_know
from benchmarks.representation.field_retention import digests_of
from benchmarks.representation.field_tasks import Item
from benchmarks.representation.grade_book import Book, GradeBook
from benchmarks.representation.grading import grade_models, scenes_of
from benchmarks.representation.identity import labels_of, model_digest, saved_rows
from benchmarks.representation.object_scenes import ObjectScene
from examples.tiny_vlm.evaluation import digest_of
from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.evaluation.questions import TINY_VLM, Question, Scene, load_evaluation_set
from tests.scene_vlm import make_scenes, save_vlm

REMEDY = r"Remove that file, or choose another --output\."


@pytest.fixture(scope="module")
def vlms(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models, in folders of one name."""
    one, other = (save_vlm(tmp_path_factory.mktemp(f"seed{seed}") / "vlm", seed) for seed in (0, 1))
    return one, other


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Scene], list[Scene]]:
    """Two sets of scenes with as many questions."""
    folder = tmp_path_factory.mktemp("sets")
    one, other = (scenes_of(str(make_scenes(folder / str(seed), 2, seed))) for seed in (0, 1))
    return one, other


def test_grades_of_another_model_of_the_same_name_are_refused(
    tmp_path: Path, vlms: tuple[str, str], sets: tuple[list[Scene], list[Scene]], monkeypatch: pytest.MonkeyPatch
) -> None:
    book = tmp_path / "grades.json"
    first = grade_models(vlms[:1], sets[0], {}, (), book)
    written = book.read_bytes()
    with pytest.raises(SystemExit, match=rf"grades\.json holds .* another model 'vlm': its digest .* {REMEDY}"):
        grade_models(vlms[1:], sets[0], {}, (), book)
    with pytest.raises(SystemExit, match="another model 'vlm'"):
        grade_models(vlms[::-1], sets[0], {}, (), book)
    with pytest.raises(SystemExit, match=rf"another set of scenes: .* {REMEDY}"):
        grade_models(vlms[:1], sets[1], {}, (), book)
    assert book.read_bytes() == written
    both = grade_models(vlms, sets[0], {}, (), book)  # one model more is no other
    assert both.whole[:1] == first.whole
    written = book.read_bytes()
    monkeypatch.setattr("benchmarks.representation.grading.grade_scenes", lambda *_: pytest.fail("measured again"))
    assert grade_models(vlms, sets[0], {}, (), book) == both
    assert book.read_bytes() == written


def test_rows_of_another_saved_config_of_the_same_name_are_refused(
    tmp_path: Path, vlms: tuple[str, str], sets: tuple[list[Scene], list[Scene]]
) -> None:
    config = TokenPrunerConfig.from_pretrained(TINY_VLM / "refined")
    assert config.generator is not None
    row = {**config.to_dict(), "generator": config.generator}
    with torch.no_grad():
        next(config.generator.parameters()).add_(1)
    other = {**row, "lloyd_steps": 0}
    digests = {str(saved_rows({"r": one})) for one in (row, other, {**row, "generator": None})}
    assert len(digests) == 3
    assert saved_rows({"r": row, "plain": {"method": "itg"}, "resized": None}).keys() == {"r"}
    grade_models(vlms[:1], sets[0], {"r": row}, (), tmp_path / "g.json")
    with pytest.raises(SystemExit, match=f"another row 'r': .* {REMEDY}"):
        grade_models(vlms[:1], sets[0], {"r": other}, (), tmp_path / "g.json")
    before = saved_rows({"r": row})
    with torch.no_grad():
        next(config.generator.parameters()).add_(1)
    assert saved_rows({"r": row}) != before


def test_a_book_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(json.dumps({"tiny_vlm all": "ff"}))
    with pytest.raises(SystemExit, match=rf"g\.json does not say what models and questions .* {REMEDY}"):
        GradeBook(tmp_path / "g.json", [], {})


def test_the_digest_of_scenes_is_that_of_pixels_and_lines(tmp_path: Path) -> None:
    scenes = load_evaluation_set(make_scenes(tmp_path / "set", 3, seed=4))
    lines = (tmp_path / "set/metadata.jsonl").read_text().splitlines()
    made = hashlib.sha256()
    for scene, line in zip(scenes, lines, strict=True):
        with Image.open(tmp_path / "set" / scene.name) as image:
            made.update(np.asarray(image.convert("RGB")).tobytes() + line.encode())
    assert digest_of(scenes) == made.hexdigest()[:16]
    changes: list[Callable[[Scene], Scene]] = [
        lambda s: replace(s, image=Image.new("RGB", s.image.size)),
        lambda s: replace(s, questions=s.questions[::-1]),
        lambda s: replace(s, photograph="p"),
    ]
    assert len({digest_of(scenes), *(digest_of([*scenes[:2], change(scenes[2])]) for change in changes)}) == 4


def test_the_digest_of_a_model_is_of_what_it_answers_by_and_not_of_where_it_is(
    tmp_path: Path, vlms: tuple[str, str]
) -> None:
    assert model_digest(save_vlm(tmp_path / "copy", 0)) == model_digest(vlms[0]) != model_digest(vlms[1])
    (tmp_path / "copy" / "trainer_state.json").write_text("{}")
    (tmp_path / "copy" / "config.json").write_text((tmp_path / "copy" / "config.json").read_text() + "\n")
    model_digest.cache_clear()
    assert model_digest(str(tmp_path / "copy")) != model_digest(vlms[0])
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"No \*\.safetensors in .*none"):
        model_digest(str(tmp_path / "none"))
    assert labels_of(["a/m", "b/m", "c/n"]) == ["m", "m 1", "n"]


def drawn(seed: int, layout: str, count: int) -> list[ObjectScene]:
    noise = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)
    scene = Scene("drawn", Image.fromarray(noise), (Question("what is at top left ?", "bag", "at"),))
    return [ObjectScene(scene, np.arange(144).reshape(12, 12) % 5 - 1)] * count


def test_what_tokens_know_is_not_that_of_another_model_or_of_other_scenes(
    tmp_path: Path, vlms: tuple[str, str]
) -> None:
    def study(model: str, seed: int) -> where_tokens_know.Study:
        options = ["--source", f"{__name__}:drawn", "--scenes", "2", "--output", str(tmp_path)]
        words = [*options, "--model", model, "--seed", str(seed)]
        return where_tokens_know.Study(where_tokens_know.parser().parse_args(words))

    shown = np.ones((2, 144), bool)
    study(vlms[0], 0).row("all", torch.zeros(2, 144, 192), shown)
    assert study(vlms[0], 0).book.books.keys() == {"all"}
    with pytest.raises(SystemExit, match="another model: "):
        study(vlms[1], 0)
    with pytest.raises(SystemExit, match="another set of scenes: "):
        study(vlms[0], 1)


def test_answers_to_other_questions_of_a_task_are_refused(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))

    def items(*rows: tuple[Any, ...]) -> dict[str, list[Item]]:
        return {"gqa": [Item(image, *row) for row in rows]}

    Book(tmp_path / "a.json", digests_of(items(("q", ("a",))))).recall("all | gqa | 1", list)
    Book(tmp_path / "a.json", digests_of(items(("q", ("a",)), ("r", ("b",)))))  # another number is another name
    for other in (("p", ("a",)), ("q", ("b",)), ("q", ("a",), "part"), ("q", ("a",), "", "group")):
        with pytest.raises(SystemExit, match="another set of 1 questions of gqa"):
            Book(tmp_path / "a.json", digests_of(items(other)))
