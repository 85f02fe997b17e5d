"""Every way transformers has to generate works with pruned tokens, and all ways agree."""

import pytest
import torch

from tests.tiny import FAMILIES, MIXED_ROWS, ROWS, generate, prompts, pruned, stock, video_prompts

POSITIONS = [(name, "auto") for name in FAMILIES] + [(n, "original") for n, f in FAMILIES.items() if not f.mrope]


def single(name, arguments, row):
    """The processor's arguments for one row of a batch of prompts."""
    images = arguments["images"]
    if not FAMILIES[name].nested:
        counts = [len(chosen) for chosen in ROWS]
        start = sum(counts[:row])
        images = images[start : start + counts[row]]
    else:
        images = images[row : row + 1]
    return {**arguments, "text": arguments["text"][row : row + 1], "images": images}


@pytest.mark.parametrize(("name", "positions"), POSITIONS)
def test_a_batch_with_left_padding_equals_single_runs(name, positions):
    model, processor = pruned(name, positions=positions)
    arguments = prompts(name, ROWS)
    inputs = processor(**arguments)
    assert (inputs["attention_mask"][:, 0] == 0).any()  # there is padding, and on the left
    together = model(**inputs).logits[:, -1]
    tokens = generate(model, inputs)
    for row in range(len(ROWS)):
        alone = processor(**single(name, arguments, row))
        assert torch.allclose(model(**alone).logits[0, -1], together[row], atol=1e-4)
        assert torch.equal(generate(model, alone)[0], tokens[row])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_only_row_equals_the_stock_model(name):
    if FAMILIES[name].image_first:
        pytest.skip("the stock processor refuses prompts without images")
    model, processor = pruned(name)
    inputs = processor(**prompts(name, MIXED_ROWS))
    stock_model, stock_processor = stock(name)
    reference = stock_processor(**prompts(name, MIXED_ROWS))
    assert torch.allclose(model(**inputs).logits[1, -1], stock_model(**reference).logits[1, -1], atol=1e-4)
    text = {"text": ["w1 w2 w3"], "return_tensors": "pt"}
    assert torch.equal(generate(model, processor(**text)), generate(stock_model, stock_processor(**text)))


@pytest.mark.parametrize(("name", "positions"), POSITIONS)
def test_generation_equals_a_loop_over_forward(name, positions):
    """Each step is a forward call on the whole sequence with its pixels and without a cache."""
    model, processor = pruned(name, positions=positions)
    inputs = dict(processor(**prompts(name, ROWS)))
    inputs.pop("labels", None)
    expected = generate(model, inputs, max_new_tokens=4, min_new_tokens=4)
    tokens = []
    for _ in range(4):
        token = model(**inputs, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(token)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], dim=1)
        for types in ("mm_token_type_ids", "token_type_ids"):
            if types in inputs:  # PaliGemma: what is generated is suffix, of type 1
                kind = 1 if name == "paligemma" else 0
                inputs[types] = torch.cat([inputs[types], torch.full_like(token, kind)], dim=1)
    assert torch.equal(torch.cat(tokens, dim=1), expected)


@pytest.mark.parametrize(("name", "positions"), POSITIONS)
def test_all_kinds_of_cache_give_the_same_tokens(name, positions):
    model, processor = pruned(name, positions=positions)
    inputs = dict(processor(**prompts(name, ROWS)))
    expected = generate(model, inputs)
    assert torch.equal(generate(model, inputs, cache_implementation="static", disable_compile=True), expected)
    assert torch.equal(generate(model, inputs, use_cache=False), expected)
    if name != "paligemma":
        assert torch.equal(generate(model, inputs, prefill_chunk_size=5), expected)


def test_stock_paligemma_cannot_prefill_in_chunks():
    """Its prompt looks both ways, which chunks cut. If this fails, the exception above can go."""
    model, processor = stock("paligemma")
    inputs = processor(**prompts("paligemma", ROWS))
    settings = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    whole, parts = (model.generate(**inputs, **settings, prefill_chunk_size=size).logits[0] for size in (None, 5))
    assert not torch.allclose(whole, parts, atol=1e-2)


@pytest.mark.parametrize(("name", "positions"), POSITIONS)
def test_the_mask_may_be_left_out(name, positions):
    model, processor = pruned(name, positions=positions)
    inputs = dict(processor(**prompts(name, [[1, 2]])))
    expected = generate(model, inputs)
    inputs.pop("attention_mask")
    assert torch.equal(generate(model, inputs), expected)
    assert torch.equal(generate(model, inputs, use_cache=False), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_with_several_results_keep_images_and_prompts_together(name):
    model, processor = pruned(name)
    arguments = prompts(name, ROWS)
    settings = {"num_beams": 3, "num_return_sequences": 2}
    together = generate(model, processor(**arguments), **settings)
    assert together.shape == (4, 5)
    for row in range(2):
        alone = generate(model, processor(**single(name, arguments, row)), **settings)
        assert torch.equal(alone, together[2 * row : 2 * row + 2])


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.video])
def test_videos_generate_in_batches_and_beams(name):
    model, processor = pruned(name)
    arguments = video_prompts(name)
    inputs = processor(**arguments)
    tokens, beams = generate(model, inputs), generate(model, inputs, num_beams=2)
    for row in range(2):
        one = {**arguments, **{k: arguments[k][row : row + 1] for k in ("text", "videos", "video_metadata")}}
        alone = processor(**one)
        assert torch.equal(generate(model, alone)[0], tokens[row])
        assert torch.equal(generate(model, alone, num_beams=2)[0], beams[row])


@pytest.mark.parametrize("name", FAMILIES)
def test_eager_attention_agrees_with_sdpa(name):
    logits = []
    for attention in ("sdpa", "eager"):
        model, processor = pruned(name, attention)
        logits.append(model(**processor(**prompts(name, ROWS))).logits[:, -1])
    assert torch.allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_models_keep_the_same_number_and_stay_finite(name):
    model, processor = pruned(name)
    model = model.to(torch.bfloat16)
    inputs = processor(**prompts(name, ROWS)).to(torch.bfloat16)
    output = model(**inputs)
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()
    assert generate(model, inputs).shape == (2, 5)
    for unit in model.base_model.token_pruner.last:
        assert unit.coverage.dtype == torch.float32


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_images_encoded_by_the_caller_still_work(name):
    model, processor = pruned(name)
    inputs = dict(processor(**prompts(name, ROWS)))
    expected = generate(model, inputs)
    names = ["pixel_values", "image_grid_thw"] if "image_grid_thw" in inputs else ["pixel_values"]
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**{k: inputs[k] for k in names}, return_dict=True)
    inputs.pop("pixel_values")
    assert torch.equal(generate(model, {**inputs, "mm_encoder_outputs": {"image": encoded}}), expected)
    logits = model(**inputs, mm_encoder_outputs={"image": encoded}).logits
    assert torch.equal(logits[:, -1].argmax(-1), expected[:, 0])


def test_positions_given_by_the_caller_are_used():
    model, processor = pruned("llava")
    inputs = processor(**prompts("llava", [[0]]))
    positions = torch.arange(inputs["input_ids"].shape[1])[None] * 2
    ours = generate(model, {**inputs, "position_ids": positions})
    model.base_model.token_pruner.last.clear()
    assert torch.equal(generate(model, {**inputs, "position_ids": positions}), ours)
    assert len(model.base_model.token_pruner.last) == 1
