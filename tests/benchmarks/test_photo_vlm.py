"""The VLM behind DINOv2 is taken apart to be shipped and put together again."""

import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, Dinov2Config, Dinov2Model

from benchmarks.models import dinov2_from_wheel, photo_vlm
from examples.photo_vlm.architecture import make_processor, make_vlm


@pytest.fixture
def tower(monkeypatch) -> Dinov2Model:
    """Stands for the encoder of the wheel, all twelve layers."""
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    made = Dinov2Model(config)
    monkeypatch.setattr(dinov2_from_wheel, "load_dinov2", lambda: made)
    return made


@pytest.mark.parametrize("seed", photo_vlm.FOLDERS)
def test_what_is_in_the_repository_fits_model_and_questions(seed, tower):
    model, processor = photo_vlm.load_photo_vlm(seed)
    assert not model.training
    assert processor.tokenizer.get_vocab() == make_processor().tokenizer.get_vocab()
    weights = load_file(photo_vlm.FOLDERS[seed] / "model.safetensors")
    assert sum(value.nbytes for value in weights.values()) <= 12e6
    for name, value in weights.items():
        assert torch.equal(model.state_dict()[name], value.float())
    image = Image.new("RGB", (300, 200))
    inputs = processor(images=image, text="<image> what is at left ?", return_tensors="pt")
    assert model.generate(**inputs, do_sample=False).shape[1] <= inputs["input_ids"].shape[1] + 8


def test_what_is_shipped_is_put_together_as_it_was_trained(tmp_path, tower, monkeypatch):
    processor = make_processor()
    trained = make_vlm(processor.tokenizer)
    mine = trained.model.vision_tower
    mine.load_state_dict({name: tower.state_dict()[name] for name in mine.state_dict()})
    trained.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["photo_vlm", str(tmp_path / "shipped"), "--export", str(tmp_path / "run")])
    photo_vlm.main()
    shipped = load_file(tmp_path / "shipped" / "model.safetensors")
    assert {value.dtype for value in shipped.values()} == {torch.float16}
    assert not any("vision_tower" in name for name in shipped)
    monkeypatch.setattr(photo_vlm, "FOLDERS", {0: tmp_path / "shipped"})
    monkeypatch.setattr(sys, "argv", ["photo_vlm", str(tmp_path / "model")])
    photo_vlm.main()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    for name, value in trained.state_dict().items():
        rounded = value if "vision_tower" in name else value.half().float()
        torch.testing.assert_close(again.state_dict()[name], rounded, rtol=0, atol=0)
    assert AutoProcessor.from_pretrained(tmp_path / "model").tokenizer.get_vocab() == processor.tokenizer.get_vocab()
