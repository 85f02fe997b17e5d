"""Caches on the way: rows reordered, picked and repeated, tokens cut off, helpers and callbacks at work."""

import copy
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_efficient.compat.transformers import cache_name, cache_of
from tests.tiny import ROWS, generate, prompts, pruned

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"positions": "original"},
    {"method": "itg"},
    {"method": "itg", "llm_layers": [1], "llm_budget": 0.5},
)
TOKENS = torch.tensor([[5], [6]])
settings_ids = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())) or "plain")


def after(model: Any, cache: Any, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, **{cache_name(): cache}, use_cache=True).logits[:, -1]


@settings_ids
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_rows_of_a_cache_may_be_reordered_picked_and_repeated(name, settings):
    model, processor = pruned(name, **settings)
    inputs = processor(**prompts(name, ROWS))
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)

    def read() -> Any:
        with torch.no_grad():
            return cache_of(model(**inputs, use_cache=True))

    expected = after(model, read(), TOKENS, mask)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    for rows in ([1, 0], [1], [0, 0, 1], [1, 1, 0, 0]):
        index = torch.tensor(rows)
        cache = read()
        kind = type(cache)
        if len(rows) == 2:
            cache.reorder_cache(index)
        else:
            cache.batch_select_indices(index)
        cache = copy.deepcopy(cache)
        assert type(cache) is kind
        assert torch.allclose(after(model, cache, TOKENS[index], mask[index]), expected[index], atol=1e-4)
    cache = read()
    cache.batch_repeat_interleave(3)
    index = torch.arange(2).repeat_interleave(3)
    assert torch.allclose(after(model, cache, TOKENS[index], mask[index]), expected[index], atol=1e-4)
    cache.batch_select_indices(torch.tensor([4]))  # and goes on
    mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    again = read()
    after(model, again, TOKENS, mask[:, :-1])
    assert torch.allclose(after(model, cache, TOKENS[1:], mask[1:]), after(model, again, TOKENS, mask)[1:], atol=1e-4)


@settings_ids
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_end_of_a_cache_may_be_cut_off(name, settings):
    model, processor = pruned(name, **settings)
    inputs = processor(**prompts(name, [[0]]))

    def read() -> Any:
        with torch.no_grad():
            return cache_of(model(**inputs, use_cache=True))

    cache = read()
    expected = after(model, copy.deepcopy(cache), torch.tensor([[5, 6]]))
    after(model, cache, torch.tensor([[9, 8, 7]]))
    cache.crop(-3)
    assert torch.allclose(after(model, cache, torch.tensor([[5, 6]])), expected, atol=1e-4)
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1]
    cache.crop(-4)  # into the question, behind the image
    assert torch.allclose(after(model, cache, inputs["input_ids"][:, -2:]), expected, atol=1e-4)
    if settings.get("llm_layers"):
        cache = read()
        before = cache.get_seq_length()
        with pytest.raises(ValueError, match="layers have dropped visual tokens"):
            cache.crop(2 - before)
        assert cache.get_seq_length() == before


@settings_ids
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_helper_with_a_pruner_of_its_own_assists(name, settings):
    model, processor = pruned(name, **settings)
    helper, _ = pruned(name, **settings)
    with torch.no_grad():
        for weight in helper.parameters():
            weight.add_(0.01 * weight)
    inputs = processor(**prompts(name, [[0]]))
    assert torch.equal(generate(model, inputs, assistant_model=helper), generate(model, inputs))


def test_features_that_a_callback_asks_for_are_not_of_the_call_under_way():
    model, processor = pruned("llava")
    inputs, other = processor(**prompts("llava", [[0]])), processor(**prompts("llava", [[1, 2]]))
    expected = generate(model, inputs)
    indices = [unit.indices.tolist() for unit in model.token_pruner.last]

    class Asks(LogitsProcessor):
        def __call__(self, ids: Any, scores: Any) -> Any:
            model.model.get_image_features(pixel_values=other["pixel_values"])
            return scores

    assert torch.equal(generate(model, inputs, logits_processor=LogitsProcessorList([Asks()])), expected)
    assert [unit.indices.tolist() for unit in model.token_pruner.last] == indices
