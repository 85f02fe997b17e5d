"""Proportional attention keeps what the model's own has: maps, caps, dropout, and its name for transformers."""

from typing import Any

import pytest
import torch
import transformers

from hf_efficient import attach_token_pruner
from tests.tiny import FAMILIES, ROWS, generate, language_model, prompts, pruned, stock
from tests.tiny_models import SIGLIP, TEXT, finish

SETTINGS: list[dict[str, Any]] = [{"method": "itg"}, {"proportional_attention": True}]
#: What depends on whether sizes count.
SAME = ({"initial_centers": "farthest_first"}, {"coverage_mix": 0.5})
QUICK = ("llava", "qwen2_5_vl", "gemma3", "paligemma")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


def maps(model: Any, inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, output_attentions=True)


@pytest.mark.parametrize(("settings", "same"), list(zip(SETTINGS, SAME, strict=True)))
@pytest.mark.parametrize("name", NAMES)
def test_attention_maps_are_those_of_the_stock_function_with_sizes_in_its_mask(name, settings, same, caplog):
    model, processor = pruned(name, "eager", **settings, **same)
    inputs = processor(**prompts(name, ROWS))
    found = maps(model, inputs)
    assert not [message for message in caplog.messages if "eager" in message]
    last = model.base_model.token_pruner.last
    sizes = torch.ones(inputs["input_ids"].shape)
    sizes[inputs["input_ids"] == model.config.image_token_id] = torch.cat([unit.mass for unit in last])
    without = {**settings, "proportional_attention": False, "positions": "original"}
    plain, _ = pruned(name, "eager", **without, **same)

    def add(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        hidden = mask < torch.finfo(mask.dtype).min / 2
        return args, {**kwargs, "attention_mask": torch.where(hidden, mask, mask + sizes.log()[:, None, None])}

    for layer in language_model(plain).layers:
        layer.self_attn.register_forward_pre_hook(add, with_kwargs=True)
    expected = maps(plain, inputs)
    assert len(found.attentions) == len(expected.attentions) == len(language_model(model).layers)
    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
        assert not torch.allclose(ours, theirs.new_full(ours.shape, 1 / ours.shape[-1]), atol=1e-3)
    assert torch.allclose(found.logits, expected.logits, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_tokens_that_stand_for_themselves_are_the_stock_ones(name):
    model, processor = stock(name, "eager")
    inputs = processor(**prompts(name, ROWS))
    expected = maps(model, inputs)
    whole, _ = pruned(name, "eager", method="itg", budget=1.0)
    found = maps(whole, inputs)
    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_generation_and_assisted_decoding_tell_maps(name):
    model, processor = pruned(name, "eager", method="itg")
    inputs = processor(**prompts(name, [[0]]))
    settings = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 5, "do_sample": False}
    alone = model.generate(**inputs, **settings)
    assisted = model.generate(**inputs, **settings, prompt_lookup_num_tokens=2)
    helper, _ = stock(name, "eager")
    helped = model.generate(**inputs, **settings, assistant_model=helper)
    for other in (assisted, helped):
        assert torch.equal(other.sequences, alone.sequences)
        assert len(other.attentions) == len(alone.attentions)
        for ours, theirs in zip(other.attentions, alone.attentions, strict=True):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def capped() -> Any:
    """A PaliGemma 2: its language model caps attention, which sdpa cannot."""
    _, processor = stock("paligemma")
    text = {"head_dim": 8, "vocab_size": 1500, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
    config = transformers.PaliGemmaConfig(
        vision_config=SIGLIP,
        text_config={**TEXT, "model_type": "gemma2", **text},
        image_token_id=processor.tokenizer.image_token_id,
        image_token_index=processor.tokenizer.image_token_id,
        projection_dim=32,
        vocab_size=1500,
    )
    return finish(transformers.PaliGemmaForConditionalGeneration, config, "eager"), processor


def test_soft_caps_of_a_models_own_attention_hold():
    model, processor = capped()
    inputs = processor(**prompts("paligemma", ROWS))
    expected = maps(model, inputs)
    attach_token_pruner(model, processor, {"method": "itg", "budget": 1.0})
    found = maps(model, inputs)
    assert torch.allclose(found.logits, expected.logits, atol=1e-4)
    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_of_attention_goes_on_in_training(attention):
    losses = []
    for attached in (False, True):
        model, processor = stock("llava", attention)
        language_model(model).config.attention_dropout = 0.5
        for layer in language_model(model).layers:
            layer.self_attn.attention_dropout = 0.5
        if attached:
            attach_token_pruner(
                model, processor, {"proportional_attention": True, "budget": 1.0, "positions": "compact"}
            )
        inputs = processor(**prompts("llava", [[0]]))
        model.train()
        torch.manual_seed(0)
        losses.append(model(**inputs, labels=inputs["input_ids"]).loss)
    assert torch.allclose(losses[0], losses[1], atol=1e-5)
    model.eval()
    assert not torch.allclose(losses[1], model(**inputs, labels=inputs["input_ids"]).loss, atol=1e-4)


@pytest.mark.parametrize("settings", [{"method": "itg"}, {"budget": 1.0, "llm_layers": [1], "llm_budget": 5}])
def test_sizes_and_layers_survive_another_choice_of_attention(settings):
    model, processor = pruned("llava", **settings)
    inputs = processor(**prompts("llava", ROWS))
    expected = model(**inputs).logits
    tokens = generate(model, inputs)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        assert torch.allclose(model(**inputs).logits[:, -1], expected[:, -1], atol=1e-4)
        assert torch.equal(generate(model, inputs), tokens)
    with pytest.raises(ValueError, match="they need sdpa or eager"):
        model.set_attn_implementation("flex_attention")
    assert torch.equal(generate(model, inputs), tokens)
    language_model(model).set_attn_implementation("eager")  # of which the pruner is not told
    with pytest.raises(ValueError, match=r"'eager' since the pruner was attached"):
        model(**inputs)
