"""`features="encoder"`: the choice is made by what the projector is given, and what is kept is what it makes of it."""

from typing import Any

import pytest
import torch

import hf_efficient
from hf_efficient import TokenPrunerConfig, attach_token_pruner, prune_inputs, remember_images, token_pruner
from tests.tiny import FAMILIES, ROWS, generate, prompts, stock

reduce_tokens: Any = hf_efficient.reduce_tokens
CAN = ["llava", "paligemma"]


def seen(model: Any, pixels: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the projector is given, and what it makes of it."""
    noted: dict[str, torch.Tensor] = {}
    base = model.base_model
    handle = base.multi_modal_projector.register_forward_hook(lambda module, args, out: noted.update(x=args[0], z=out))
    with torch.no_grad():
        base.get_image_features(pixel_values=pixels, **arguments)
    handle.remove()
    return noted["x"], noted["z"]


@pytest.mark.parametrize("method", ["divprune", "itg", "visionzip"])
@pytest.mark.parametrize("name", CAN)
def test_the_choice_is_that_of_the_encoders_features(name: str, method: str) -> None:
    model, processor = stock(name)
    config = TokenPrunerConfig(method, 5, features="encoder", importance="norm" if method == "visionzip" else "auto")
    if method == "itg":
        config.initial_centers = "farthest_first"  # else it depends on whether sizes count
    inputs = processor(**prompts(name, ROWS))
    before, after = seen(model, inputs["pixel_values"])
    expected = reduce_tokens(before, config)
    tokens = after.gather(1, expected.indices.unsqueeze(-1).expand(-1, -1, after.shape[-1]))
    if expected.mixture is not None:
        tokens = expected.mixture.of(after)
    assert not torch.equal(expected.indices, reduce_tokens(after, config).indices)
    pruned = prune_inputs(model, inputs, config.with_method(method, proportional_attention=None))
    torch.testing.assert_close(torch.stack(list(pruned["mm_encoder_outputs"]["image"].pooler_output)), tokens)
    with token_pruner(model, processor, config):
        with torch.no_grad():
            output = model.base_model.get_image_features(pixel_values=inputs["pixel_values"])
        assert torch.equal(torch.stack([unit.indices for unit in output.kept]), expected.indices)
        torch.testing.assert_close(torch.stack(list(output.pooler_output)), tokens)
        with remember_images(model), torch.no_grad():
            for _ in range(2):
                again = model.base_model.get_image_features(pixel_values=inputs["pixel_values"])
                assert torch.equal(torch.stack([unit.indices for unit in again.kept]), expected.indices)
        assert generate(model, dict(processor(**prompts(name, ROWS)))).shape[0] == 2


@pytest.mark.parametrize("layers", [-1, [0, -2]])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_the_layers_and_tokens_that_are_taken_are_those_of_the_call(layers: Any, strategy: str) -> None:
    model, processor = stock("llava")
    pixels = processor(**prompts("llava", [[0]]))["pixel_values"]
    base = model.base_model
    width = base.config.vision_config.hidden_size
    if isinstance(layers, list):
        base.multi_modal_projector.linear_1 = torch.nn.Linear(
            2 * width, base.multi_modal_projector.linear_2.in_features
        )
    arguments = {"vision_feature_layer": layers, "vision_feature_select_strategy": strategy}
    expected = reduce_tokens(seen(model, pixels, **arguments)[0], TokenPrunerConfig("divprune", 5)).indices
    with token_pruner(model, processor, TokenPrunerConfig("divprune", 5, features="encoder")), torch.no_grad():
        kept = base.get_image_features(pixel_values=pixels, **arguments).kept
    assert kept[0].indices.tolist() == expected[0].tolist()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in CAN])
def test_projectors_that_move_tokens_are_refused(name: str) -> None:
    model, processor = stock(name)
    config = TokenPrunerConfig(features="encoder")
    with pytest.raises(ValueError, match=r"features='encoder' needs a projector .*Set features='projected'"):
        attach_token_pruner(model, processor, config)
    with pytest.raises(ValueError, match="features='encoder' needs a projector"):
        prune_inputs(model, processor(**prompts(name, ROWS)), config)


def test_the_question_is_not_in_the_encoders_space() -> None:
    with pytest.raises(ValueError, match="features='encoder' is read only with question_weight=0"):
        TokenPrunerConfig(features="encoder", question_weight=0.5)
