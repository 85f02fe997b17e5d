"""Words of packed turns are those of generate, whatever is pruned; boxes are right by their overlap."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.representation import packed_turns
from benchmarks.representation.packed_turns import answer_scenes, grade_scenes
from benchmarks.representation.scoring import box_of, overlap, points_at
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.evaluation.questions import load_evaluation_set
from tests.scene_vlm import make_scene_vlm, make_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return load_evaluation_set(make_scenes(tmp_path_factory.mktemp("scenes"), scenes=3))


FAMILIES = ("at", "exists", "list")
PRUNERS = [
    None,
    TokenPrunerConfig(method="uniform", budget=9),
    TokenPrunerConfig(method="uniform", budget=9, positions="original", proportional_attention=True),
]


def generated(model, processor, images, question, length):
    """Words that generate says, their probabilities, and whether it came to an end."""
    text = " ".join([processor.image_token] * len(images)) + f" {question}"
    inputs = processor(images=images, text=text, return_tensors="pt")
    said = model.generate(
        **inputs, do_sample=False, max_new_tokens=length, output_logits=True, return_dict_in_generate=True
    )
    ids = said.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    chances = [logits[0].softmax(-1).max().item() for logits in said.logits]
    end = processor.tokenizer.eos_token_id
    return processor.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids), chances


@pytest.mark.parametrize("config", PRUNERS, ids=["all", "compact", "original, sizes"])
@pytest.mark.parametrize("pictures", [1, 2])
def test_settled_words_and_their_probabilities_are_those_of_generate(scenes, config, pictures):
    model, processor = make_scene_vlm()
    before = [scene.image for scene in reversed(scenes)] if pictures == 2 else None

    def check():
        answers = answer_scenes(model, processor, scenes, batch_size=2, settle=FAMILIES, before=before)
        for number, (scene, row) in enumerate(zip(scenes, answers, strict=True)):
            images = [scene.image] if before is None else [before[number], scene.image]
            for question, answer in zip(scene.questions, row, strict=True):
                length = len(question.answer.split()) + 1
                words, chances = generated(model, processor, images, question.question, length)
                assert answer.words == words
                assert answer.right == (words == question.answer and len(chances) == length)
                assert answer.first_probability == pytest.approx(chances[0], rel=1e-3)
                assert answer.probability == pytest.approx(np.prod(chances), rel=1e-3)

    if config is None:
        return check()
    with token_pruner(model, processor, config):
        check()


def test_a_family_with_a_rule_is_graded_by_it_on_settled_words(scenes, monkeypatch):
    model, processor = make_scene_vlm()
    asked = []

    def rule(given: str, right: str) -> bool:
        asked.append((given, right))
        return True

    monkeypatch.setitem(packed_turns.RULES, "list", rule)
    graded = answer_scenes(model, processor, scenes, settle=("list",))
    assert all(row[2].right for row in graded)
    assert not any(answer.right for row in graded for answer in row[:2])
    for (given, right), scene in zip(asked, scenes, strict=True):
        question = scene.questions[2]
        assert right == question.answer
        assert given == generated(model, processor, [scene.image], question.question, len(right.split()) + 1)[0]
    assert grade_scenes(model, processor, scenes) == [[a.right for a in row] for row in graded]


def test_overlap_is_that_of_counted_cells():
    rng = np.random.default_rng(0)
    several = 0
    for number in range(300):
        corners = rng.integers(0, 9, (2, 2, 2))  # of two boxes; of every third pair as they fall, which may be empty
        boxes: list[Any] = [tuple(map(int, (box if number % 3 == 0 else np.sort(box, 0)).ravel())) for box in corners]
        filled = []
        for left, top, right, bottom in boxes:
            cells = np.zeros((9, 9), bool)
            cells[top:bottom, left:right] = True
            filled.append(cells)
        both, either = (filled[0] & filled[1]).sum(), (filled[0] | filled[1]).sum()
        several += 0 < both < either
        assert overlap(*boxes) == pytest.approx(both / either if both else 0)
    assert several > 20


def test_boxes_are_found_from_half_overlap_on():
    assert points_at("<x2> <x2> <x6> <x6>", "<x2> <x2> <x6> <x6>")
    assert points_at("<x2><x2><x6><x4>", "<x2> <x2> <x6> <x6>")  # half of it
    assert not points_at("<x2> <x2> <x5> <x4>", "<x2> <x2> <x6> <x6>")
    for wrong in ("", "bag", "<x2> <x2> <x6>", "<x2> <x2> <x6> <x6> <x6>", "a <x2> <x2> <x6> <x6>"):
        assert box_of(wrong) is None
        assert not points_at(wrong, "<x2> <x2> <x6> <x6>")


def test_an_image_before_the_own_one_is_looked_at(scenes):
    model, processor = make_scene_vlm()
    with torch.no_grad():
        one, other = (
            answer_scenes(model, processor, scenes, before=[Image.new("RGB", (96, 96), colour)] * 3)
            for colour in ("black", "white")
        )
    assert [a.first_probability for row in one for a in row] != [a.first_probability for row in other for a in row]
