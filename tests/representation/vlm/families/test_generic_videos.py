"""Types without a file: what must hold of those whose videos prove themselves."""

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner, load_token_pruned, prune_inputs
from tests.tiny import generate, recorded
from tests.zoo import check_seen, kept_columns, parameters, stock
from tests.zoo.clips import APART, VIDEO_CORE, VIDEOS, clip_rows, shown_clips

BUDGET = 3
TYPES = parameters(VIDEOS, VIDEO_CORE)


def pruned(name, **settings):
    config = TokenPrunerConfig(**{"budget": BUDGET, "importance": "distinct", **settings})
    return attach_token_pruner(*stock(name), config)


def runs(ids, token):
    """Lengths of the unbroken runs of a token, row by row."""
    lengths: list[int] = []
    for row in ids.tolist():
        before = None
        for one in row:
            if one == token:
                lengths = [*lengths, 1] if before != token else [*lengths[:-1], lengths[-1] + 1]
            before = one
    return lengths


def placeholder(config, ids):
    return config.video_token_id if (ids == config.video_token_id).any() else config.image_token_id


@pytest.mark.parametrize("name", TYPES)
def test_keeping_all_tokens_is_the_stock_model_bit_for_bit(name):
    model, processor = stock(name)
    inputs = shown_clips(processor, clip_rows(name))
    whole, whole_processor = pruned(name, budget=1.0)
    again = shown_clips(whole_processor, clip_rows(name))
    for key, value in inputs.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[key])), key
    assert torch.equal(model(**inputs).logits, whole(**again).logits)
    assert torch.equal(generate(model, inputs), generate(whole, again))


@pytest.mark.parametrize("method", ["id_pruner", "itg", "tome"])
@pytest.mark.parametrize("name", TYPES)
def test_k_is_exact_and_a_batch_is_its_rows_and_generate_goes_on_from_forward(name, method):
    _, full_processor = stock(name)
    model, processor = pruned(name, method=method)
    rows = clip_rows(name)
    inputs = shown_clips(processor, rows)
    token = placeholder(model.config, inputs["input_ids"])
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        last = model.base_model.token_pruner.last
        step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
        assert torch.allclose(logits, step, atol=1e-4)
        for row, one in enumerate(rows):
            assert torch.allclose(model(**shown_clips(processor, [one])).logits[0, -1], logits[row], atol=1e-4)
    full = runs(shown_clips(full_processor, rows)["input_ids"], token)
    assert [unit.num_tokens for unit in last] == full
    assert [len(unit.indices) for unit in last] == [min(BUDGET, n) for n in full]
    assert runs(inputs["input_ids"], token) == [min(BUDGET, n) for n in full]
    assert {unit.modality for unit in last} == {"video"}


@pytest.mark.parametrize("positions", ["auto", "original"])
@pytest.mark.parametrize("name", TYPES)
def test_the_language_model_sees_what_it_would_have_seen_of_the_kept_tokens(name, positions):
    if positions == "original" and name == "molmo2":  # rows of its pictures end with tokens of the text
        with pytest.raises(ValueError, match="positions='original' has no meaning"):
            pruned(name, positions=positions)
        return
    model, processor = stock(name)
    full = shown_clips(processor, clip_rows(name)[1:])
    with recorded(model) as stock_calls:
        generate(model, full)
    model, processor = pruned(name, positions=positions)
    inputs = shown_clips(processor, clip_rows(name)[1:])
    with recorded(model) as calls:
        generate(model, inputs)
    token, last = placeholder(model.config, full["input_ids"]), model.base_model.token_pruner.last
    (columns,) = kept_columns(full["input_ids"], token, last)
    check_seen(stock_calls, calls, columns, full["input_ids"].shape[1], positions == "original")


@pytest.mark.parametrize("name", TYPES)
def test_inputs_are_pruned_as_an_attached_pair_does_and_a_saved_pair_comes_back(name, tmp_path):
    model, processor = pruned(name)
    inputs = shown_clips(processor, clip_rows(name))
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_token_pruned(tmp_path)
    assert torch.allclose(again(**inputs).logits, expected, atol=1e-5)
    detach_token_pruner(model, processor)
    config = TokenPrunerConfig(budget=BUDGET, importance="distinct")
    made = prune_inputs(model, shown_clips(processor, clip_rows(name)), config, processor)
    assert torch.allclose(model(**made).logits[:, -1], expected[:, -1], atol=1e-4)


@pytest.mark.parametrize("name", TYPES)
def test_a_picture_and_a_clip_in_one_prompt_are_both_pruned_where_stock_takes_them(name):
    model, processor = pruned(name)
    inputs = shown_clips(processor, [[0]], pictures=True)
    if name in APART:
        with pytest.raises(ValueError, match=r"Images and videos in one call of .* cannot be pruned"):
            model(**inputs)
        return
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        last = model.base_model.token_pruner.last
        step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
    assert torch.allclose(logits, step, atol=1e-4)
    for modality in ("image", "video"):
        token = getattr(model.config, f"{modality}_token_id")
        units = [unit for unit in last if unit.modality == modality]
        assert [len(unit.indices) for unit in units] == [min(BUDGET, unit.num_tokens) for unit in units]
        assert int((inputs["input_ids"] == token).sum()) == sum(len(unit.indices) for unit in units) > 0


@pytest.mark.parametrize("name", TYPES)
def test_counts_for_serving_are_those_of_the_prompt(name):
    _, full_processor = stock(name)
    _, processor = pruned(name)
    sizes = [(4, 56, 84)]
    try:
        (before,) = full_processor._get_num_multimodal_tokens(video_sizes=sizes).num_video_tokens
    except (AttributeError, NotImplementedError, TypeError):
        pytest.skip("the stock processor does not count videos")
    (after,) = processor._get_num_multimodal_tokens(video_sizes=sizes).num_video_tokens
    lengths = [shown_clips(one, [[0]])["input_ids"].shape[1] for one in (full_processor, processor)]
    assert before - after == lengths[0] - lengths[1]
