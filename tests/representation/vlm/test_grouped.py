"""Settings about tiles or frames inside a unit: refused where they can never act, said once where they do not."""

from typing import Any

import pytest
import torch

import hf_efficient
from hf_efficient import TokenPrunerConfig, attach_token_pruner, prune_inputs
from hf_efficient.representation.reduce import select_order
from hf_efficient.representation.vlm.grouped import logger
from tests.tiny import FAMILIES, ROWS, image, prompts, pruned, stock, video_prompts

reduce_tokens: Any = hf_efficient.reduce_tokens
ACT = {
    "min_group_share": {"llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl"},
    "merge_static": {"llava_onevision", "qwen2_vl", "qwen2_5_vl"},
}


@pytest.mark.parametrize("setting", list(ACT))
@pytest.mark.parametrize("name", FAMILIES)
def test_what_can_never_act_is_refused(name: str, setting: str) -> None:
    model, processor = stock(name)
    settings: dict[str, Any] = {setting: 0.5}
    config = TokenPrunerConfig(**settings)
    if name in ACT[setting]:
        attach_token_pruner(model, processor, config)
        return
    with pytest.raises(ValueError, match=rf"{setting}=0.5 is about .*frames inside one unit.*Set {setting}=0.0"):
        attach_token_pruner(model, processor, config)
    assert not hasattr(model.base_model, "token_pruner")
    with pytest.raises(ValueError, match=f"Set {setting}=0.0"):
        prune_inputs(model, processor(**prompts(name, ROWS)), config)


@pytest.mark.parametrize("setting", list(ACT))
@pytest.mark.parametrize("function", [reduce_tokens, select_order])
def test_tokens_alone_need_their_groups(function: Any, setting: str) -> None:
    settings: dict[str, Any] = {setting: 0.5}
    x, config = torch.randn(1, 12, 4), TokenPrunerConfig(budget=4, **settings)
    with pytest.raises(ValueError, match=f"{setting}=0.5 needs the `groups` argument"):
        function(x, config)
    function(x, config, groups=torch.arange(12) // 6)


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("qwen2_vl", "min_group_share", "does nothing for this image: it has no tiles or frames"),
        ("qwen2_vl", "merge_static", "does nothing for this image: it has no frames"),
        ("llava_onevision", "merge_static", "does nothing for this image: it has no frames"),
    ],
)
def test_a_image_without_groups_is_said_once_and_kept_as_without(
    name: str, setting: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    kept = []
    both: list[dict[str, Any]] = [{}, {setting: 0.5}]
    for settings in both:
        model, processor = pruned(name, budget=5, **settings)
        for _ in range(2):
            with torch.no_grad():
                model(**processor(**prompts(name, [[0]])))
        kept.append(model.base_model.token_pruner.last[0].indices)
    assert torch.equal(*kept)
    assert sum(said in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision"])
def test_a_video_is_no_reason_to_speak(name: str, caplog: pytest.LogCaptureFixture) -> None:
    type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    model, processor = pruned(name, budget=5, min_group_share=0.5, merge_static=0.9)
    with torch.no_grad():
        model(**processor(**video_prompts(name)))
    assert not [record for record in caplog.records if record.name == logger.name]


@pytest.mark.parametrize(("height", "width"), [(112, 56), (56, 28), (128, 64)])
def test_tiles_of_a_image_are_no_frames(height: int, width: int) -> None:
    """Tiles one below the other lie in memory as the frames of a video do, and show different places."""
    kept = []
    for alike in (0.0, 0.01):
        model, processor = pruned("llava_onevision", budget=12, merge_static=alike)
        inputs = processor(text=prompts("llava_onevision", [[0]])["text"], images=[image(0, height, width)],
                           return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            model(**inputs)
        kept.append(model.base_model.token_pruner.last[0])
    assert kept[1].mixture is None
    assert torch.equal(kept[0].indices, kept[1].indices)


def test_inputs_alone_cannot_drop_tokens_in_layers() -> None:
    model, processor = stock("llava")
    with pytest.raises(ValueError, match=r"llm_layers=\[1\] changes the model, not its inputs alone"):
        prune_inputs(model, processor(**prompts("llava", ROWS)), TokenPrunerConfig(llm_layers=[1]))
