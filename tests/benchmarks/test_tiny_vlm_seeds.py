"""Both training seeds of the tiny VLM are where benchmarks find them, and answer."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.harness.intervals import Grades
from benchmarks.models import tiny_vlm
from benchmarks.representation.packed_turns import grade_scenes
from hf_efficient.representation.evaluation.questions import EVALUATION_SET, load_evaluation_set, load_vlm
from tests.scene_vlm import save_vlm


def share_of(grades: Grades) -> float:
    """Of right answers."""
    right = [one for scene in grades for one in scene]
    return sum(right) / len(right)


@pytest.mark.parametrize("seed", tiny_vlm.FOLDERS)
def test_a_seed_answers_the_evaluation_set(seed: int) -> None:
    model, processor = load_vlm(tiny_vlm.FOLDERS[seed])
    assert model.dtype == torch.float32
    assert not model.training
    assert share_of(grade_scenes(model, processor, load_evaluation_set(EVALUATION_SET, 64))) > 0.9


def test_seeds_differ() -> None:
    """A copy of the first under another name would say that seeds do not matter."""
    first, second = (load_vlm(folder)[0].state_dict() for folder in tiny_vlm.FOLDERS.values())
    assert first.keys() == second.keys()
    assert not any(torch.equal(value, second[name]) for name, value in first.items() if value.dim() == 2)


def test_a_trained_model_is_written_at_half_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vlm(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["tiny_vlm", str(tmp_path / "run"), "--folder", str(tmp_path / "kept")])
    tiny_vlm.main()
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
    kept, _ = load_vlm(tmp_path / "kept")
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(kept.state_dict()[name], value.half().float(), rtol=0, atol=0)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("run", "kept")]
    assert sizes[1] < 0.6 * sizes[0]
