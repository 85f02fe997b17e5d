"""Copies as the processor marks them: by its own colours, for a model that drops them, of images it has seen."""

from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.vlm.copies import logger
from tests.representation.vlm.test_copies import merging, page, pages
from tests.tiny import IMAGES, ROWS, prompts, stock, video_prompts


@pytest.mark.parametrize(
    "settings", [{"do_normalize": False}, {"image_mean": [0.0] * 3, "image_std": [0.2] * 3}, {"image_std": 0.5}]
)
def test_the_tolerance_is_of_pixels_however_a_call_normalises_them(settings: dict[str, Any]) -> None:
    def marks(levels: int, call: dict[str, Any], attributes: dict[str, Any]) -> torch.Tensor:
        _, processor = merging("qwen2_vl", merge_copies=levels / 255)
        for key, value in attributes.items():
            setattr(processor.image_processor, key, value)
        pixels: torch.Tensor = processor(**pages("qwen2_vl", draw=lambda i: page(i, noise=2)), **call)["pixel_values"]
        return pixels[:, 0].isinf()

    assert bool(marks(4, {}, {}).any())  # of two cells the noise is 4 levels apart somewhere
    for call, attributes in ((settings, {}), ({}, settings)):
        assert torch.equal(marks(4, call, attributes), marks(4, {}, {}))
        assert not bool(marks(3, call, attributes).any())


@pytest.mark.parametrize("method", ["itg", "top_importance"])
def test_pixels_with_marked_copies_are_refused_by_a_pruner_that_keeps_copies(method: str) -> None:
    model, processor = merging("qwen2_vl", budget=3, method=method)
    inputs = processor(**pages("qwen2_vl"))
    attach_token_pruner(model, processor, TokenPrunerConfig(method, 3))
    grids = {"image_grid_thw": inputs["image_grid_thw"]}
    for call in (lambda: model(**inputs), lambda: model.get_image_features(inputs["pixel_values"], **grids)):
        with pytest.raises(ValueError, match=r"copies marked .* merge_copies=None"):
            call()


@pytest.mark.parametrize("tolerance", [0.0, 4 / 255])
def test_cells_that_repeat_unmarked_are_said_once_and_photographs_are_not(
    tolerance: float, caplog: pytest.LogCaptureFixture
) -> None:
    type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    logger.propagate = True
    caplog.set_level("WARNING", logger.name)
    arguments = pages("qwen2_vl")
    unmarked = stock("qwen2_vl")[1](**arguments)
    model, processor = merging("qwen2_vl", merge_copies=tolerance)
    photographs = {**arguments, "images": prompts("qwen2_vl", ROWS)["images"]}
    with torch.no_grad():
        model(**processor(**arguments))
        model(**processor(**photographs))
        model(**processor(**video_prompts("qwen2_vl")))
        assert not [record for record in caplog.records if record.name == logger.name]
        model(**unmarked)
        model.get_image_features(unmarked["pixel_values"], unmarked["image_grid_thw"])
    said = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert len(said) == 1
    assert "merge_copies merges nothing of an image whose cells repeat" in said[0]


def test_sizes_alone_do_not_tell_the_number_of_tokens() -> None:
    _, processor = merging("qwen2_vl")
    with pytest.raises(ValueError, match="which its size does not tell"):
        processor._get_num_multimodal_tokens(image_sizes=[IMAGES[0][1:]])
    sizes: dict[str, Any] = {"image_sizes": [], "video_sizes": [(4, 56, 56)]}  # of videos they do
    told = processor._get_num_multimodal_tokens(**sizes).num_video_tokens
    assert told == stock("qwen2_vl")[1]._get_num_multimodal_tokens(**sizes).num_video_tokens
