"""Images are encoded once, and nothing else changes."""

import pytest
import torch

from hf_efficient import TokenPrunerConfig, remember_images, token_pruner
from hf_efficient.representation.vlm.families.family import VisualInputs
from hf_efficient.representation.vlm.memory import key_of
from tests.tiny import ROWS, generate, prompts, stock, video_prompts


class Counted:
    """How often a module runs."""

    def __init__(self, module):
        self.runs = 0
        module.register_forward_hook(self)

    def __call__(self, *_):
        self.runs += 1


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen3_vl", "internvl"])
def test_a_chat_over_one_image_encodes_it_once(name):
    model, processor = stock(name)
    base = model.base_model
    tower = Counted(base.visual if hasattr(base, "visual") else base.vision_tower)
    configs = [TokenPrunerConfig(budget=3), TokenPrunerConfig(budget=3, method="itg"), TokenPrunerConfig(budget=2)]
    expected = []
    for config in configs:
        with token_pruner(model, processor, config):
            expected.append(generate(model, processor(**prompts(name, ROWS))))
    runs, tower.runs = tower.runs, 0
    with remember_images(model):
        for _ in range(2):
            for config, tokens in zip(configs, expected, strict=True):
                with token_pruner(model, processor, config):
                    assert torch.equal(generate(model, processor(**prompts(name, ROWS))), tokens)
        assert tower.runs == runs / len(configs)
    assert not hasattr(model.base_model, "image_memories")


def test_other_images_other_importance_and_training_are_looked_at_anew():
    model, processor = stock("llava")
    tower = Counted(model.base_model.vision_tower)
    with remember_images(model, size=1), token_pruner(model, processor, TokenPrunerConfig(budget=4)):
        first, second = (processor(**prompts("llava", [[i]])) for i in (0, 1))
        expected = generate(model, first)
        generate(model, second)
        assert tower.runs == 2
        assert torch.equal(generate(model, first), expected)  # only one call is remembered
        assert tower.runs == 3
        with token_pruner(model, processor, TokenPrunerConfig(budget=4, importance="received")):
            generate(model, first)
        assert tower.runs == 4
        model(**first).logits.sum().backward()
        model(**first)
        assert tower.runs == 6
    with pytest.raises(ValueError, match="size=0"), remember_images(model, size=0):
        pass


def test_videos_are_remembered_beside_images():
    model, processor = stock("qwen2_5_vl")
    tower = Counted(model.base_model.visual)
    with remember_images(model), token_pruner(model, processor, TokenPrunerConfig(budget=4)):
        inputs = processor(**video_prompts("qwen2_5_vl", images=True))
        expected = generate(model, inputs)
        assert torch.equal(generate(model, inputs), expected)
        assert tower.runs == 2


def test_images_in_a_list_are_told_apart_by_all_their_values():
    first = torch.zeros(3, 40, 40)
    second = first.clone()
    second[1, 20, 20] = 1  # where the repr of a tensor has dots
    keys = {
        key_of(VisualInputs(None, "image", {"pixel_values": pixels})) for pixels in ([first], [second], [first] * 2)
    }
    assert len(keys) == 3
    assert key_of(VisualInputs(None, "image", {"pixel_values": [first.clone()]})) in keys
