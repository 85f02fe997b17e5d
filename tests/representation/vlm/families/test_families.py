"""What must hold for every family: nothing changes when all is kept, and K is exact when not."""

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner
from hf_efficient.methods import FAMILIES as SUPPORTED
from tests.tiny import FAMILIES, MIXED_ROWS, ROWS, budget, generate, prompts, pruned, stock, video_prompts

VIDEO = [name for name, family in FAMILIES.items() if family.video]
VIDEO_AND_IMAGE = [name for name in VIDEO if name != "smolvlm"]  # stock SmolVLM takes one or the other


def cases(name):
    """Processor arguments of all kinds a family takes."""
    found = {"images": prompts(name, ROWS), "with a text-only row": prompts(name, MIXED_ROWS)}
    if name in VIDEO:
        found["videos"] = video_prompts(name)
    if name in VIDEO_AND_IMAGE:
        found["videos and images"] = video_prompts(name, images=True)
    return found


def test_the_table_of_families_is_tested_whole():
    assert set(SUPPORTED.names) == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_all_tokens_is_the_stock_model_bit_for_bit(name):
    model, processor = stock(name)
    whole, whole_processor = pruned(name, budget=1.0)
    for kind, arguments in cases(name).items():
        inputs, pruned_inputs = processor(**arguments), whole_processor(**arguments)
        assert inputs.keys() == pruned_inputs.keys()
        for key, value in inputs.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(pruned_inputs[key])), (kind, key)
        assert torch.equal(model(**inputs).logits, whole(**pruned_inputs).logits), kind
        assert torch.equal(generate(model, inputs), generate(whole, pruned_inputs)), kind


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.mrope])
def test_keeping_all_tokens_is_the_stock_model_whatever_the_positions(name, positions):
    model, processor = stock(name)
    whole, _ = pruned(name, budget=1.0, positions=positions)
    inputs = processor(**prompts(name, ROWS))
    assert torch.allclose(model(**inputs).logits, whole(**inputs).logits, atol=1e-5)
    assert torch.equal(generate(model, inputs), generate(whole, inputs))


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_unit_keeps_exactly_k_tokens(name, share):
    _, full_processor = stock(name)
    config = TokenPrunerConfig(budget=share or budget(name))
    model, processor = attach_token_pruner(*stock(name), config=config)
    for kind, arguments in cases(name).items():
        full, inputs = full_processor(**arguments), processor(**arguments)
        with torch.no_grad():
            model(**inputs)
        last = model.base_model.token_pruner.last
        for modality in ("image", "video"):
            token = getattr(model.config, f"{modality}_token_id", None)
            units = [unit for unit in last if unit.modality == modality]
            if token is None or not hasattr(model.base_model, f"get_{modality}_features"):
                assert not units
                continue
            assert sum(unit.num_tokens for unit in units) == int((full["input_ids"] == token).sum()), kind
            assert [len(unit.indices) for unit in units] == [config.tokens_to_keep(u.num_tokens) for u in units]
            assert sum(len(unit.indices) for unit in units) == int((inputs["input_ids"] == token).sum()), kind
            for unit in units:
                assert (unit.indices.diff() > 0).all()
                assert unit.indices[0] >= 0
                assert unit.indices[-1] < unit.num_tokens
                assert 0 <= unit.importance_retained <= 1
                assert 0 <= unit.coverage <= 1
                assert unit.grid is None or unit.grid[0] * unit.grid[1] == unit.num_tokens


# images of 112 x 140, 84 x 112 and 112 x 56 pixels, tokens of the units as the families' papers cut them
UNITS = {
    "llava": [16] * 3,
    "llava_next": [70, 70, 56],  # overview of 4 x 4; 6 x 8, 6 x 8, 8 x 4 of what is not padding, and a break per row
    "llava_onevision": [70, 17, 17],  # as above; among several images in a prompt, one tile and a break each
    "video_llava": [16] * 3,
    "qwen2_vl": [20, 12, 8],
    "qwen2_5_vl": [20, 12, 8],
    "qwen3_vl": [20, 12, 8],
    "smolvlm": [16] * 13,
    "idefics3": [16] * 13,
    "paligemma": [16] * 3,
    "gemma3": [4] * 3,
    "internvl": [16] * 13,
}
VIDEO_UNITS = {  # two videos of 4 frames of 56 x 56
    "llava_onevision": [17] * 2,  # frames of 2 x 2, a break at the end of the video
    "video_llava": [17] * 8,  # 4 x 4 and [CLS]
    "qwen2_vl": [8] * 2,
    "qwen2_5_vl": [8] * 2,
    "qwen3_vl": [4] * 4,  # a unit per pair of frames
    "smolvlm": [16] * 8,
    "internvl": [16] * 8,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_unit_is_a_image_tile_or_frame(name):
    model, processor = pruned(name)
    with torch.no_grad():
        model(**processor(**prompts(name, ROWS)))
        assert [unit.num_tokens for unit in model.base_model.token_pruner.last] == UNITS[name]
        if name in VIDEO:
            model(**processor(**video_prompts(name)))
            assert [unit.num_tokens for unit in model.base_model.token_pruner.last] == VIDEO_UNITS[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_unit_does_not_depend_on_what_else_is_in_the_batch(name):
    model, processor = pruned(name)
    with torch.no_grad():
        model(**processor(**prompts(name, [[1, 2]])))
        alone = model.base_model.token_pruner.last
        model(**processor(**prompts(name, ROWS)))
        together = model.base_model.token_pruner.last[-len(alone) :]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.indices, b.indices)


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_for_serving_are_those_of_the_prompt(name):
    model, processor = pruned(name)
    sizes = [(112, 140), (84, 112)]
    try:
        full = stock(name)[1]._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    except AttributeError:
        pytest.skip("the stock processor does not count")
    counted = processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    detach_token_pruner(model, processor)
    config = TokenPrunerConfig(budget=budget(name))
    for image, (before, after) in enumerate(zip(full, counted, strict=True)):
        inputs = processor(**prompts(name, [[image]]))
        attach_token_pruner(model, processor, config)
        fewer = processor(**prompts(name, [[image]]))
        detach_token_pruner(model, processor)
        assert before - after == inputs["input_ids"].shape[1] - fewer["input_ids"].shape[1]


def test_counts_of_qwen3_videos_are_per_frame():
    _, processor = pruned("qwen3_vl", budget=3)
    counted = processor._get_num_multimodal_tokens(video_sizes=[(4, 56, 56)]).num_video_tokens
    assert counted == [6]


def test_an_unsupported_family_is_refused_with_the_list_of_those_that_are():
    import transformers

    text = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
        )
    )
    with pytest.raises(ValueError, match=r"model_type='llama'.*llava.*qwen2_5_vl.*internvl"):
        attach_token_pruner(text, None, TokenPrunerConfig())
