"""Learning behind a frozen encoder whose features are made once is learning behind the encoder itself."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from examples.tiny_vlm import photographs
from examples.tiny_vlm.architecture import make_processor, make_vlm
from examples.tiny_vlm.data import TurnData, collate_turns
from examples.tiny_vlm.encoded import EncodedTurns, FromFile, encode_scenes, standardize
from examples.tiny_vlm.scenes import GARMENTS, IMAGE_SIDE, LAYOUTS, compose_scene

LAYER = -2


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {word: rng.integers(0, 256, (3, 28, 28), np.uint8) for word in GARMENTS}


@pytest.fixture(scope="module")
def tower() -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4, image_size=48)
    return Dinov2Model(config).eval()


def test_features_out_of_the_file_give_the_answers_of_the_tower(images, tower, tmp_path) -> None:
    processor = make_processor(tower.config.patch_size, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    torch.manual_seed(0)
    model = make_vlm(processor.tokenizer, tower.config, LAYER).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    data = EncodedTurns(images, processor.tokenizer, length=8, turns=3, seed=4)
    scenes = data.scenes(5)
    arguments = (tower, LAYER, processor.image_processor, scenes, tmp_path / "features.npy")
    data.features = encode_scenes(*arguments)
    assert data.features.shape == (5, 145, 16)
    assert np.array_equal(encode_scenes(*arguments), data.features)  # read, not made again

    batch = collate_turns([data[6], data[2]])  # the sixth asks anew about the first scene after a round of five
    pixels = processor.image_processor([scenes[1].image(), scenes[2].image()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model(**{**batch, "pixel_values": pixels}).logits
        model.model.vision_tower = FromFile(tower.config.num_hidden_layers + 1)
        read = model(**batch).logits
    torch.testing.assert_close(read, seen, atol=2e-3, rtol=2e-2)  # the file is of half precision
    other = collate_turns([data[7], data[2]])
    with torch.no_grad():
        assert not torch.allclose(model(**other).logits[0, 1:145], seen[0, 1:145], atol=2e-3)


def test_a_scene_is_asked_about_anew_in_each_round(images, tower) -> None:
    data = EncodedTurns(images, make_processor().tokenizer, length=8, turns=4, features=np.zeros((4, 145, 16)))
    assert any(not torch.equal(data[i]["input_ids"], data[i + 4]["input_ids"]) for i in range(4))
    assert isinstance(data, TurnData)


def test_a_standardized_layer_starts_as_on_standard_inputs() -> None:
    layer, before = nn.Linear(6, 4), nn.Linear(6, 4)
    before.load_state_dict(layer.state_dict())
    features = np.random.default_rng(0).normal([0, 5, -3, 1, 0, 9], [1, 9, 0.1, 2, 1, 4], (20, 7, 6))
    standardize(layer, features)
    x = torch.from_numpy(features).float()
    z = (x - x.mean((0, 1))) / x.flatten(0, 1).std(0)
    torch.testing.assert_close(layer(x), before(z), atol=1e-4, rtol=1e-4)


def test_photographs_lie_behind_the_garments_and_are_held_out_by_name(images) -> None:
    pytest.importorskip("skimage")
    assert not set(photographs.TRAINING) & set(photographs.HELD_OUT)
    for name in (*photographs.TRAINING, *photographs.HELD_OUT):
        assert min(photographs.photograph(name).size) >= IMAGE_SIDE
    crop = photographs.crop(np.random.default_rng(2), ("moon",), IMAGE_SIDE)
    assert crop.shape == (IMAGE_SIDE, IMAGE_SIDE)
    scene = compose_scene(np.random.default_rng(0), images, LAYOUTS["photographs"])
    behind = photographs.crop(np.random.default_rng(0), photographs.HELD_OUT, IMAGE_SIDE)
    free = np.ones_like(behind, bool)
    for item in scene.items:
        free[item.top : item.top + item.side, item.left : item.left + item.side] = False
    assert np.array_equal(scene.pixels[free], behind.clip(0, 255).astype(np.uint8)[free])
