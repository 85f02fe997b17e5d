"""The data of the demonstration are what the questions say."""

from pathlib import Path

import pytest
import torch

from hf_efficient.cli import demo_video
from hf_efficient.cli.demo_all import page_of
from hf_efficient.cli.demo_line import Line, right
from hf_efficient.cli.demo_training import PLACES, SIDE, garments_of
from hf_efficient.representation.evaluation.questions import EVALUATION_SET, load_evaluation_set


@pytest.mark.skipif(not EVALUATION_SET.is_dir(), reason="the shipped images are not in this checkout")
def test_garments_are_cut_out_of_the_place_that_is_asked_about() -> None:
    scenes = load_evaluation_set(limit=40)
    data = garments_of(scenes)
    asked = [q for s in scenes for q in s.questions if q.family == "at"]
    assert len(data.y) + len(data.y_test) == len(asked)
    assert data.classes == len({q.answer for q in asked})
    scene = scenes[1]
    (question,) = [q for q in scene.questions if q.family == "at"]
    row, column = divmod(PLACES.index(question.question.removeprefix("what is at ").removesuffix(" ?")), 3)
    box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
    cut = torch.tensor(list(scene.image.convert("L").crop(box).tobytes())) / 255
    assert torch.equal(data.x[0], cut)


@pytest.mark.skipif(not EVALUATION_SET.is_dir(), reason="the shipped images are not in this checkout")
def test_the_video_is_played_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Networks that are larger than a clip of one second are what the table is to show."""
    monkeypatch.setattr(demo_video, "STEPS", 2)
    monkeypatch.setattr(demo_video, "NETWORKS", {"STDO": demo_video.NETWORKS["STDO"]})
    lines, _ = demo_video.played(load_evaluation_set(limit=12), tmp_path)
    assert "will hardly be smaller" not in caplog.text
    assert [line.name for line in lines] == ["video at half its size, bicubic", "video by STDO"]


def test_shares_have_intervals() -> None:
    assert right(0.5, 100) == "50.0% right (40.4 to 59.6)"  # as published tables of Wilson's interval
    assert right(1.0, 10) == "100.0% right (72.2 to 100.0)"


def test_the_page_shows_the_pictures_it_is_given_and_no_others() -> None:
    page = page_of([Line("parameters", "a <b>", "c", "d")], ["kept_tokens_00.png"], 128)
    assert page.count("kept_tokens_") == 1
    assert "a &lt;b&gt;" in page
    assert "128 test pictures" in page
