"""Evaluation sets as datasets: the schema, what reads them, and the way to the Hub and back."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Image, Value, load_dataset

from hf_efficient.budget.planner.ready import exact_answers, rows_of_pictures
from hf_efficient.budget.planner.rows import inputs_of_rows
from hf_efficient.representation.evaluation.as_dataset import COLUMNS, evaluation_dataset
from hf_efficient.representation.evaluation.questions import EVALUATION_SET, load_evaluation_set
from tests.conftest import ROOT
from tests.local_hub import LocalHub
from tests.scene_vlm import make_scene_vlm, make_scenes

PUSH = """
import sys
from datasets import load_dataset
from hf_efficient.representation.evaluation.as_dataset import evaluation_dataset
made = evaluation_dataset(sys.argv[1])
made.push_to_hub("tester/scenes")
again = load_dataset("tester/scenes", split="train")
assert again.features == made.features, again.features
assert again.remove_columns("image").to_list() == made.remove_columns("image").to_list()
assert all(again[i]["image"].tobytes() == made[i]["image"].tobytes() for i in range(len(made)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("sets") / "set", scenes=2)


def test_the_shipped_set_has_a_row_a_question() -> None:
    data, scenes = evaluation_dataset(), load_evaluation_set(EVALUATION_SET)
    assert list(data.features) == list(COLUMNS)
    assert data.features["image"] == Image(mode="RGB")
    assert all(data.features[name] == Value("string") for name in COLUMNS if name != "image")
    asked = [(scene, question) for scene in scenes for question in scene.questions]
    assert len(data) == len(asked) > 2000
    plain = data.remove_columns("image").to_list()
    assert plain == [
        {"question": q.question, "answer": q.answer, "family": q.family, "scene": s.name, "photograph": s.photograph}
        for s, q in asked
    ]
    for i in (0, 17, len(data) - 1):
        assert data[i]["image"].mode == "RGB"
        assert data[i]["image"].tobytes() == asked[i][0].image.tobytes()


def test_pictures_of_the_same_name_in_the_working_directory_are_not_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluation_dataset(folder)[0]["image"].tobytes()
    name = load_evaluation_set(folder)[0].name
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"another picture")
    monkeypatch.chdir(tmp_path)
    assert evaluation_dataset(folder)[0]["image"].tobytes() == expected


def test_a_plan_is_looked_for_on_it(folder: Path) -> None:
    model, processor = make_scene_vlm()
    data, rows = evaluation_dataset(folder), rows_of_pictures(folder, 100)
    assert exact_answers(model, processor, data) == exact_answers(model, processor, rows)
    made: Any = inputs_of_rows(processor, [data[i] for i in range(len(data))])
    for name, value in inputs_of_rows(processor, rows).items():
        assert made[name].equal(value)


def test_it_is_read_from_parquet_without_a_network(folder: Path, tmp_path: Path) -> None:
    data = evaluation_dataset(shutil.copytree(folder, tmp_path / "gone"))
    data.to_parquet(tmp_path / "set.parquet")
    shutil.rmtree(tmp_path / "gone")  # the file holds the pictures
    again = load_dataset("parquet", data_files=str(tmp_path / "set.parquet"), split="train", cache_dir=str(tmp_path))
    assert again.features == data.features
    assert again.remove_columns("image").to_list() == data.remove_columns("image").to_list()
    before = evaluation_dataset(folder)
    assert [row["image"].tobytes() for row in again] == [row["image"].tobytes() for row in before]


def test_it_goes_to_the_hub_and_comes_back(folder: Path, tmp_path: Path) -> None:
    with LocalHub() as hub:
        command = [sys.executable, "-c", PUSH, str(folder)]
        done = subprocess.run(command, env=hub.environment(tmp_path), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        files = hub.repos["tester/scenes"]
        assert [name for name in files if name.endswith(".parquet")]
        assert b"mode: RGB" in files["README.md"]
