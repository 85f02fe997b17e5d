"""Positions of kept tokens, against the unpruned run of the stock model."""

import pytest
import torch

from hf_efficient.compat.transformers import cache_name, cache_of
from hf_efficient.representation.vlm.prompt import Prompt, restore
from tests.tiny import FAMILIES, MIXED_ROWS, ROWS, generate, prompts, pruned, recorded, stock, video_prompts

ONE_AXIS = [name for name, family in FAMILIES.items() if not family.mrope]
MROPE = [name for name, family in FAMILIES.items() if family.mrope]


def kept_columns(model, inputs, last):
    """Columns of the unpruned prompt that stay, row by row: a plain walk, to check the vectorised one by."""
    tokens = {m: getattr(model.config, f"{m}_token_id", None) for m in ("image", "video")}
    kept: dict[str, list[bool]] = {m: [] for m in tokens}
    for unit in last:
        kept[unit.modality] += [i in unit.indices.tolist() for i in range(unit.num_tokens)]
    stays = {tokens[m]: iter(flags) for m, flags in kept.items() if tokens[m] is not None}
    rows = []
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        visual = [i in stays for i in ids]
        rows.append([c for c, i in enumerate(ids) if mask[c] and (next(stays[i]) if visual[c] else True)])
    assert all(next(flags, None) is None for flags in stays.values())
    return rows


def axes(position_ids, row):
    """Positions (axes, L) of one row; of four M-RoPE rows the three that rotate."""
    positions = position_ids[None] if position_ids.dim() == 2 else position_ids[-3:]
    return positions.expand(-1, max(positions.shape[1], row + 1), -1)[:, row]


def kinds(name):
    found = [prompts(name, ROWS), prompts(name, MIXED_ROWS)]
    if FAMILIES[name].video:
        found.append(video_prompts(name, images=name != "smolvlm"))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_language_model_sees_what_it_would_have_seen_of_the_kept_tokens(name):
    for arguments in kinds(name):
        model, processor = stock(name)
        full = processor(**arguments)
        with recorded(model) as stock_calls:
            generate(model, full)
        model, processor = pruned(name, positions="original")
        inputs = processor(**arguments)
        with recorded(model) as calls:
            generate(model, inputs)
        first, ours = stock_calls[0], calls[0]
        columns = kept_columns(model, full, model.base_model.token_pruner.last)
        for row, kept in enumerate(columns):
            real = inputs["attention_mask"][row].bool()
            assert torch.allclose(first["inputs_embeds"][row, kept], ours["inputs_embeds"][row, real], atol=1e-5)
            expected = axes(first["position_ids"], row)[:, kept]
            assert torch.equal(expected, axes(ours["position_ids"], row)[:, real])
            for now, then in zip(calls[1:], stock_calls[1:], strict=True):  # and goes on where it would have gone on
                assert torch.equal(axes(now["position_ids"], row), axes(then["position_ids"], row))
        for level, stock_level in zip(
            ours.get("deepstack_visual_embeds") or [], first.get("deepstack_visual_embeds") or [], strict=True
        ):
            last = sorted(model.base_model.token_pruner.last, key=lambda unit: unit.modality)
            if len({unit.modality for unit in last}) == 1:
                starts = torch.tensor([0, *(unit.num_tokens for unit in last)]).cumsum(0)
                chosen = torch.cat([s + unit.indices for s, unit in zip(starts, last, strict=False)])
                assert torch.equal(level, stock_level[chosen])


@pytest.mark.parametrize("name", MROPE)
def test_the_text_row_of_mrope_positions_has_no_gaps(name):
    model, processor = pruned(name)
    inputs = processor(**prompts(name, ROWS))
    with recorded(model) as calls:
        generate(model, inputs)
    for row, real in enumerate(inputs["attention_mask"].bool()):
        text = calls[0]["position_ids"][0, row, real]
        assert text.tolist() == list(range(int(real.sum())))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["auto", "original"])
def test_forward_gives_the_first_logits_of_generate(name, positions):
    model, processor = pruned(name, positions=positions)
    for arguments in kinds(name):
        inputs = processor(**arguments)
        step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
        assert torch.allclose(model(**inputs).logits[:, -1], step, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_on_unpadded_input_gives_the_positions_of_the_unpruned_run(name):
    arguments = prompts(name, [[1, 2]])
    model, processor = stock(name)
    full = processor(**arguments)
    with recorded(model) as stock_calls:
        model(**full)
    model, processor = pruned(name, positions="original")
    with recorded(model) as calls:
        model(**processor(**arguments))
    (kept,) = kept_columns(model, full, model.base_model.token_pruner.last)
    expected = stock_calls[0].get("position_ids")
    if expected is None:
        expected = torch.arange(full["input_ids"].shape[1])[None]
    assert torch.equal(axes(expected, 0)[:, kept], axes(calls[0]["position_ids"], 0))


@pytest.mark.parametrize("name", ONE_AXIS)
def test_one_axis_positions_are_compact_unless_asked_otherwise(name):
    model, processor = pruned(name)
    inputs = processor(**prompts(name, ROWS))
    with recorded(model) as calls:
        generate(model, inputs)
    for row, real in enumerate(inputs["attention_mask"].bool()):
        positions = calls[0]["position_ids"][row, real]
        assert (positions.diff() == 1).all()


@pytest.mark.parametrize("name", MROPE)
def test_compact_positions_are_refused_where_positions_have_axes(name):
    with pytest.raises(ValueError, match=r"positions='compact'.*(time, height, width).*'original'"):
        pruned(name, positions="compact")


@pytest.mark.parametrize("name", FAMILIES)
def test_gaps_in_positions_are_not_taken_for_packed_sequences(name):
    """Without mask and cache, transformers reads every jump in positions as the start of another sequence."""
    model, processor = pruned(name, positions="original")
    inputs = dict(processor(**prompts(name, [[1, 2]])))
    masked = model(**inputs, use_cache=True).logits
    inputs.pop("attention_mask")
    assert torch.allclose(model(**inputs, use_cache=False).logits, masked, atol=1e-4)
    assert torch.allclose(model(**inputs, use_cache=True).logits, masked, atol=1e-4)


def test_really_packed_sequences_stay_apart():
    """Positions that start again are packed sequences, and are left to transformers."""
    model, processor = pruned("llava", positions="original")
    inputs = processor(**prompts("llava", [[0]]))
    single = model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    packed = {
        "input_ids": inputs["input_ids"].repeat(1, 2),
        "pixel_values": inputs["pixel_values"].repeat(2, 1, 1, 1),
        "position_ids": torch.arange(length).repeat(2)[None],
    }
    compact, _ = pruned("llava", positions="compact")
    expected = compact(**inputs).logits
    logits = model(**packed, use_cache=False).logits
    assert torch.allclose(logits[:, :length], expected, atol=1e-4)
    assert torch.allclose(logits[:, length:], expected, atol=1e-4)
    assert not torch.allclose(single, expected, atol=1e-4)  # kept positions would have shown


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("positions", ["auto", "original"])
def test_a_second_turn_goes_on_from_the_cache(name, positions):
    """Text after a cache that holds pruned images equals the whole conversation at once."""
    model, processor = pruned(name, positions=positions)
    inputs = dict(processor(**prompts(name, [[0]])))
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    extra = more.shape[1] - inputs["input_ids"].shape[1]
    longer = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        longer["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, extra)], dim=1)
    images = {k: v for k, v in inputs.items() if "pixel" in k or "grid" in k or k == "image_sizes"}
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    whole = model.generate(**longer, **images, **settings)
    model.generate(**inputs, max_new_tokens=1)  # the model is where it was after the first turn
    longer.pop("mm_token_type_ids", None)
    turn = model.generate(**longer, **{cache_name(): cache_of(first)}, **settings)
    assert torch.allclose(torch.stack(turn.logits), torch.stack(whole.logits), atol=1e-4)


def test_new_images_after_a_cache_with_compact_positions():
    model, processor = pruned("llava")
    inputs = dict(processor(**prompts("llava", [[0]])))
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    second = processor(**prompts("llava", [[1]]))
    ids = torch.cat([first.sequences, second["input_ids"]], dim=1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = torch.cat([inputs["pixel_values"], second["pixel_values"]])
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    whole = model.generate(**longer, pixel_values=both, **settings)
    cache = cache_of(first)
    turn = model.generate(**longer, pixel_values=second["pixel_values"], **{cache_name(): cache}, **settings)
    assert torch.allclose(torch.stack(turn.logits), torch.stack(whole.logits), atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_new_images_after_a_cache_are_refused_where_positions_are_kept(name):
    model, processor = pruned(name, positions="original")
    inputs = dict(processor(**prompts(name, [[0]])))
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, inputs["input_ids"]], dim=1)
    more = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in more:
        more["mm_token_type_ids"] = torch.cat([torch.zeros_like(first.sequences), more["mm_token_type_ids"]], dim=1)
    with pytest.raises(ValueError, match="without a cache"):
        model.generate(**more, **{cache_name(): cache_of(first)}, max_new_tokens=1)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_restored_prompt_is_the_unpruned_one(padding_side):
    """Rows of different length, with both modalities, padded on either side."""
    model, processor = pruned("qwen2_5_vl", budget=3)
    _, full_processor = stock("qwen2_5_vl")
    arguments = {**video_prompts("qwen2_5_vl", images=True), "padding_side": padding_side}
    arguments["text"][0] += " w1 w2 w3 w4 w5 w6"
    inputs, full = processor(**arguments), full_processor(**arguments)
    with torch.no_grad():
        model(**inputs)
    last = model.base_model.token_pruner.last
    kept = {m: [unit for unit in last if unit.modality == m] for m in ("image", "video")}
    family = model.base_model.token_pruner.family
    prompt = Prompt.of(model.base_model, family, inputs["input_ids"], inputs["attention_mask"])
    restored = restore(prompt, kept, inputs["mm_token_type_ids"])
    for ours, theirs in (
        (restored.ids, full["input_ids"]),
        (restored.mask, full["attention_mask"]),
        (restored.types, full["mm_token_type_ids"]),
    ):
        assert ours is not None
        assert torch.equal(ours, theirs)
    assert torch.equal(restored.ids.gather(1, restored.columns), inputs["input_ids"])
