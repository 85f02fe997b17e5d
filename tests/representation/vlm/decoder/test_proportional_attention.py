"""Proportional attention against a model in which every token really stands n times, in every way to generate."""

import copy
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner, token_pruner
from hf_efficient.compat.transformers import cache_name, cache_of
from hf_efficient.representation.vlm import attach
from hf_efficient.representation.vlm.decoder.proportional_attention import PREFIX, add_log_mass, text_configs
from hf_efficient.representation.vlm.inputs import prune_inputs
from tests.tiny import (
    FAMILIES,
    MIXED_ROWS,
    ROWS,
    generate,
    language_model,
    prompts,
    pruned,
    recorded,
    stock,
    video_prompts,
)

# PaliGemma and Gemma 3 let images look both ways or through windows; their masks are tested below
CAUSAL = [name for name in FAMILIES if name not in ("paligemma", "gemma3")]


def sizes(model, inputs):
    """(B, L) how many tokens every column of a prompt stands for, from what the pruner says of its units."""
    counts = torch.ones(inputs["input_ids"].shape)
    for modality in ("image", "video"):
        token = getattr(model.config, f"{modality}_token_id", None)
        units = [unit for unit in model.base_model.token_pruner.last if unit.modality == modality]
        if units:
            counts[inputs["input_ids"] == token] = torch.cat([unit.mass for unit in units])
    return counts


@pytest.mark.parametrize("method", ["id_pruner", "itg"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_token_of_size_n_is_n_tokens_at_one_place(name, method):
    """The stock language model is shown every token n times, with a mask that lets all copies see each other."""
    model, processor = pruned(name, method=method, proportional_attention=True)
    inputs = processor(**prompts(name, [[1, 2]]))
    with recorded(model) as calls, torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    counts = sizes(model, inputs)[0].long()
    assert counts.max() > 1
    assert counts.sum() > len(counts)
    call = calls[0]
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    call["inputs_embeds"] = call["inputs_embeds"][:, owner]
    positions = call.get("position_ids")
    positions = torch.arange(len(counts))[None] if positions is None else positions
    call["position_ids"] = positions[..., owner]
    call["attention_mask"] = (owner[:, None] >= owner[None])[None, None]
    levels = call.get("deepstack_visual_embeds")
    if levels:
        visual = call["visual_pos_masks"]
        call["visual_pos_masks"] = visual[:, owner]
        inside = counts[visual[0]]
        call["deepstack_visual_embeds"] = [level.repeat_interleave(inside, 0) for level in levels]
    detach_token_pruner(model, processor)
    with torch.no_grad():
        hidden = language_model(model)(**{**call, "use_cache": False}).last_hidden_state
        expected = model.lm_head(hidden)
    last = counts.cumsum(0) - 1
    assert torch.allclose(expected[:, last], logits, atol=1e-4)


def masks(model, run):
    """The mask every attention layer of the language model was given, call by call."""
    seen = []

    def keep(module, args, kwargs):
        mask = kwargs.get("attention_mask")
        seen.append(None if mask is None else mask.clone())

    layers = [m for n, m in language_model(model).named_modules() if n.endswith("self_attn")]
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static", "disable_compile": True}])
@pytest.mark.parametrize("name", FAMILIES)
def test_masks_are_those_of_the_model_with_log_sizes_on_their_columns(name, cache):
    model, processor = pruned(name, "eager", proportional_attention=False, positions="original")
    inputs = processor(**prompts(name, ROWS))
    plain = masks(model, lambda: generate(model, inputs, max_new_tokens=3, min_new_tokens=3, **cache))
    model, processor = pruned(name, "eager", proportional_attention=True)
    sized = masks(model, lambda: generate(model, inputs, max_new_tokens=3, min_new_tokens=3, **cache))
    counts = sizes(model, inputs)
    assert len(plain) == len(sized) > 0
    for before, after in zip(plain, sized, strict=True):
        bias = torch.nn.functional.pad(counts.log(), (0, max(0, before.shape[-1] - counts.shape[1])))
        expected = before + bias[:, None, None, : before.shape[-1]]
        seen = before > -1e30
        assert torch.equal(seen, after > -1e30)
        assert torch.allclose(expected[seen], after[seen])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_to_generate_agrees(name):
    model, processor = pruned(name, method="itg", proportional_attention=True)
    inputs = dict(processor(**prompts(name, ROWS)))
    expected = generate(model, inputs)
    step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
    assert torch.allclose(model(**inputs).logits[:, -1], step, atol=1e-4)
    assert torch.equal(generate(model, inputs, use_cache=False), expected)
    assert torch.equal(generate(model, inputs, cache_implementation="static", disable_compile=True), expected)
    if name != "paligemma":
        assert torch.equal(generate(model, inputs, prefill_chunk_size=5), expected)
    arguments = prompts(name, ROWS)
    beams = generate(model, inputs, num_beams=3, num_return_sequences=2)
    for row in range(2):  # padded on the left in the batch, and not alone
        shown = arguments["images"][row : row + 1] if FAMILIES[name].nested else arguments["images"][row : 2 * row + 1]
        alone = processor(**{**arguments, "text": arguments["text"][row : row + 1], "images": shown})
        assert torch.allclose(model(**alone).logits[0, -1], step[row], atol=1e-4)
        assert torch.equal(generate(model, alone, num_beams=3, num_return_sequences=2), beams[2 * row : 2 * row + 2])
    plain, _ = pruned(name, method="itg", proportional_attention=False, positions="original")
    assert not torch.allclose(plain(**inputs).logits[:, -1], step, atol=1e-3)  # sizes do matter


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.video])
def test_videos_have_sizes_too(name):
    model, processor = pruned(name, method="itg")
    inputs = processor(**video_prompts(name))
    tokens = generate(model, inputs)
    assert torch.equal(generate(model, inputs, use_cache=False), tokens)
    assert sizes(model, inputs).max() > 1


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_second_turn_and_a_prompt_without_images(name):
    model, processor = pruned(name, method="itg")
    inputs = dict(processor(**prompts(name, [[0]])))
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    first = model.generate(**inputs, **settings)
    more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    longer = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    whole = {**longer, **{k: v for k, v in inputs.items() if "pixel" in k or "grid" in k}}
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        extra = more.shape[1] - types.shape[1]
        whole["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, extra)], dim=1)
    expected = model.generate(**whole, **settings)
    again = model.generate(**inputs, **settings)
    turn = model.generate(**longer, **{cache_name(): cache_of(again)}, **settings)
    assert torch.allclose(torch.stack(turn.logits), torch.stack(expected.logits), atol=1e-4)
    text = {"text": ["w1 w2 w3"], "return_tensors": "pt"}
    stock_model, stock_processor = stock(name)
    assert torch.equal(generate(model, processor(**text)), generate(stock_model, stock_processor(**text)))
    mixed, stock_mixed = processor(**prompts(name, MIXED_ROWS)), stock_processor(**prompts(name, MIXED_ROWS))
    assert torch.allclose(model(**mixed).logits[1, -1], stock_model(**stock_mixed).logits[1, -1], atol=1e-4)


def test_new_images_after_a_cache_bring_their_sizes():
    model, processor = pruned("llava", method="itg", positions="compact")
    inputs = dict(processor(**prompts("llava", [[0]])))
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    second = processor(**prompts("llava", [[1]]))
    ids = torch.cat([first.sequences, second["input_ids"]], dim=1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = torch.cat([inputs["pixel_values"], second["pixel_values"]])
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    whole = model.generate(**longer, pixel_values=both, **settings)
    again = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    turn = model.generate(**longer, pixel_values=second["pixel_values"], **{cache_name(): cache_of(again)}, **settings)
    assert torch.allclose(torch.stack(turn.logits), torch.stack(whole.logits), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_of_size_one_are_the_stock_model(name):
    model, processor = stock(name)
    whole, whole_processor = pruned(name, method="itg", budget=1.0, proportional_attention=True)
    inputs, same = processor(**prompts(name, ROWS)), whole_processor(**prompts(name, ROWS))
    real = inputs["attention_mask"].bool()  # what padding sees is nobody's business
    assert torch.allclose(model(**inputs).logits[real], whole(**same).logits[real], atol=1e-4)
    assert torch.equal(generate(model, inputs), generate(whole, same))


def test_it_is_on_with_itg_only_unless_asked_for_and_follows_positions():
    for method, asked, on in (("itg", None, True), ("itg", False, False), ("id_pruner", None, False),
                              ("id_pruner", True, True)):  # fmt: skip
        model, _ = pruned("llava", method=method, proportional_attention=asked)
        implementation = language_model(model).config._attn_implementation
        assert implementation == (PREFIX + "sdpa" if on else "sdpa")
        assert model.base_model.token_pruner.keeps_positions == on
        assert model.base_model.vision_tower.config._attn_implementation == "sdpa"
    compact, _ = pruned("llava", method="itg", positions="compact")
    assert not compact.base_model.token_pruner.keeps_positions


def test_pairs_of_positions_and_sizes_that_lost_are_warned_of(caplog):
    type(attach.logger).warning_once.cache_clear()
    for positions, sized, warned in (("compact", True, True), ("original", False, True), ("auto", True, False),
                                     ("auto", False, False), ("original", True, False)):  # fmt: skip
        caplog.clear()
        pruned("llava", positions=positions, proportional_attention=sized)
        assert any(f"positions={positions!r}" in message for message in caplog.messages) == warned
    pruned("qwen2_5_vl", positions="original")
    assert not caplog.messages


def test_attention_without_additive_masks_is_refused_when_asked_for_and_left_alone_when_not():
    AttentionInterface.register("other_kernel", lambda *args, **kwargs: None)
    model, processor = stock("llava")
    for config in text_configs(model.base_model):
        config._attn_implementation_internal = "other_kernel"
    with pytest.raises(ValueError, match=r"'other_kernel' cannot take.*attn_implementation='sdpa'"):
        attach_token_pruner(model, processor, TokenPrunerConfig(proportional_attention=True))
    assert not hasattr(model.base_model, "token_pruner")
    attach_token_pruner(model, processor, TokenPrunerConfig(method="itg"))
    assert not model.base_model.token_pruner.proportional_attention
    assert language_model(model).config._attn_implementation == "other_kernel"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_detaching_and_contexts_give_attention_back(attention):
    model, processor = stock("llava", attention)
    inputs = processor(**prompts("llava", ROWS))
    expected = generate(model, inputs)
    with token_pruner(model, processor, TokenPrunerConfig(method="itg", budget=4)):
        generate(model, processor(**prompts("llava", ROWS)))
        with token_pruner(model, processor, TokenPrunerConfig(budget=4)):
            assert language_model(model).config._attn_implementation == attention
        assert language_model(model).config._attn_implementation == PREFIX + attention
    assert language_model(model).config._attn_implementation == attention
    assert torch.equal(generate(model, inputs), expected)
    attach_token_pruner(model, processor, TokenPrunerConfig(method="itg", budget=4))
    detach_token_pruner(model, processor)
    assert torch.equal(generate(model, inputs), expected)


def test_copies_and_saved_models_go_on_alike(tmp_path):
    model, processor = pruned("llava", method="itg")
    inputs = processor(**prompts("llava", ROWS))
    expected = generate(model, inputs)
    other = copy.deepcopy(model)
    generate(other, processor(**prompts("llava", [[0]])))  # its sizes are its own
    assert torch.equal(generate(other, inputs), expected)
    model.save_pretrained(tmp_path)
    assert PREFIX not in (tmp_path / "config.json").read_text()


def test_masks_of_the_caller():
    """A bool mask gets sizes; a float one is the caller's own business."""
    model, processor = pruned("llava", method="itg")
    inputs = dict(processor(**prompts("llava", [[1]])))
    expected = model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    assert torch.allclose(model(**{**inputs, "attention_mask": causal}).logits, expected, atol=1e-5)
    plain = torch.zeros(1, 1, length, length).masked_fill(~causal, torch.finfo(torch.float32).min)
    plain_itg: dict[str, Any] = {"method": "itg", "proportional_attention": False, "initial_centers": "farthest_first"}
    without, _ = pruned("llava", positions="original", **plain_itg)
    logits = model(**{**inputs, "attention_mask": plain}).logits
    assert torch.allclose(logits, without(**inputs).logits, atol=1e-5)


def test_windows_and_beams_take_their_columns():
    mask = torch.zeros(4, 1, 1, 3)
    mask[1, 0, 0, 0] = torch.finfo(torch.float32).min
    log_mass = torch.arange(10.0).view(2, 5)
    added = add_log_mass(mask, log_mass, kv_offset=3)
    assert added[0, 0, 0].tolist() == [3, 4, 0]
    assert added[1, 0, 0].tolist() == [torch.finfo(torch.float32).min, 4, 0]
    assert added[2, 0, 0].tolist() == [8, 9, 0]


def test_inputs_alone_cannot_be_proportional_attention():
    model, processor = stock("llava")
    with pytest.raises(ValueError, match="attach_token_pruner"):
        prune_inputs(model, processor(**prompts("llava", ROWS)), TokenPrunerConfig(proportional_attention=True))
