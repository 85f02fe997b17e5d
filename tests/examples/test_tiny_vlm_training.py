"""What the tiny VLM is trained on is what it meets when a question is asked alone through the stock processor."""

import numpy as np
import pytest
import torch

from examples.tiny_vlm.architecture import make_processor, make_vlm
from examples.tiny_vlm.data import PatchData, TurnData, collate_turns, pixel_values, visual_positions
from examples.tiny_vlm.scenes import GARMENTS, LAYOUTS, PLACES, compose_scene


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {word: rng.integers(0, 256, (3, 28, 28), np.uint8) for word in GARMENTS}


def test_packed_turns_give_the_logits_of_turns_asked_alone(images):
    processor = make_processor()
    torch.manual_seed(0)
    model = make_vlm(processor.tokenizer).eval()
    data = TurnData(images, processor.tokenizer, length=40, turns=6)
    index = next(i for i in range(40) if data[i]["position_ids"][:145].tolist() == list(range(145)))
    batch = collate_turns([data[index], data[index + 1]])
    row, scene = data[index], compose_scene(np.random.default_rng((1, index)), images)
    with torch.no_grad():
        packed = model(**batch).logits[0]
        for turn in range(1, 7):
            places = (row["turn"] == turn).nonzero()[:, 0]
            text = "<image> " + processor.tokenizer.decode(row["input_ids"][places])
            alone = model(**processor(images=scene.image(), text=text, return_tensors="pt")).logits[0, 145:]
            torch.testing.assert_close(alone, packed[places], atol=1e-5, rtol=1e-4)


def test_labels_are_answers_and_the_words_of_patches(images):
    processor = make_processor()
    row = TurnData(images, processor.tokenizer, length=1, name_patches=True)[0]
    scene = compose_scene(np.random.default_rng((1, 0)), images)
    words = [processor.tokenizer.decode(i) if i >= 0 else None for i in row["labels"][2:145]]
    for word, owner in zip(words, scene.owner[:-1], strict=True):
        item = scene.items[owner] if owner >= 0 else None
        assert word in ((item.word, PLACES[item.place]) if item else (None,))
    assert {word in PLACES for word in words if word} == {True, False}
    told = row["labels"][145:] != -100
    assert torch.equal(row["labels"][145:][told], row["input_ids"][145:][told])
    assert (row["input_ids"][145:][told] == processor.tokenizer.eos_token_id).sum() == row["turn"].max()


def test_training_pixels_are_those_of_the_processor(images):
    scene = compose_scene(np.random.default_rng(3), images)
    made = make_processor().image_processor(scene.image(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixel_values(scene), made, atol=1e-6, rtol=0)


def test_visual_positions_rise_and_are_often_the_plain_ones():
    drawn = [visual_positions(np.random.default_rng(seed), 144) for seed in range(200)]
    assert all(len(p) == 144 and p[0] >= 1 and np.all(np.diff(p) >= 0) for p in drawn)
    plain = sum(p == list(range(1, 145)) for p in drawn)
    assert 70 < plain < 130


def test_patch_labels_say_what_the_scene_holds(images):
    row = PatchData(images, 1, seed=5, layout=LAYOUTS["full"])[0]
    scene = compose_scene(np.random.default_rng((5, 0)), images, LAYOUTS["full"])
    kinds = list(GARMENTS)
    for patch, owner in enumerate(scene.owner):
        item = scene.items[owner] if owner >= 0 else None
        assert row["kind"][patch] == (kinds.index(item.word) + 1 if item else 0)
        assert row["place"][patch] == (item.place if item else -100)
        assert row["size"][patch] == pytest.approx(item.side / 32 if item else 0)
    assert row["middle"].nonzero()[:, 0].tolist() == sorted(item.centre_patch for item in scene.items)
    assert row["numbers"][1:].sum() == len(scene.items)
