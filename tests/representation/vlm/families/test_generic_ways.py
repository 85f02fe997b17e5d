"""Types without a file, in every way that a pruned model is used: one of each kind, against stock or the plain way."""

import copy
import pickle
from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, load_token_pruned, prune_inputs, remember_images
from hf_efficient.cli import main
from hf_efficient.compat.transformers import cache_name, cache_of
from hf_efficient.representation.vlm.prompt import images_of
from tests.representation.vlm.decoder.test_proportional_attention import masks, sizes
from tests.representation.vlm.test_memory import Counted
from tests.representation.vlm.test_wrapped import logits, lora, peft, shake
from tests.tiny import IMAGES, ROWS, generate, image, language_model
from tests.zoo import shown, stock

#: rows that end with text, tiles, pooled patches, M-RoPE, M-RoPE with levels of deepstack, layers without attention
KINDS = ("mistral3", "aya_vision", "gemma4", "glm4v", "qwen3_vl_moe", "qwen3_5")
HYBRID = "qwen3_5"


def pruned(name, **settings):
    return attach_token_pruner(*stock(name), TokenPrunerConfig(**{"budget": 3, "importance": "distinct", **settings}))


def encoder(model):
    return next(part for part in model.base_model.children() if part is not language_model(model))


def forget_shapes(model):
    model.base_model.token_pruner.family.known.clear()


@pytest.mark.parametrize("name", KINDS)
def test_features_encoded_before_give_the_same_bits(name):
    model, processor = pruned(name, method="itg")
    inputs = shown(processor, ROWS)
    expected, tokens = logits(model, inputs), generate(model, inputs)
    (images,) = images_of(model.base_model, inputs)
    with torch.no_grad():
        output = model.base_model.get_image_features(**images.arguments)
    runs = Counted(encoder(model))
    for _ in range(2):  # they can be used again
        given = {k: v for k, v in inputs.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": output}}
        assert torch.equal(logits(model, given), expected)
        assert torch.equal(generate(model, given), tokens)
    assert runs.runs == 0


@pytest.mark.parametrize("name", KINDS)
def test_an_encoder_runs_once_a_call_even_where_it_has_to_say_how_many_tokens_there_are(name):
    model, processor = pruned(name)
    inputs = shown(processor, ROWS)
    (images,) = images_of(model.base_model, inputs)
    expected, tokens = logits(model, inputs), generate(model, inputs)
    with torch.no_grad():
        features = model.base_model.get_image_features(**images.arguments).pooler_output
    runs = Counted(encoder(model))

    def once(run):
        forget_shapes(model)
        runs.runs = 0
        result = run()
        assert runs.runs == 1
        return result

    assert torch.equal(once(lambda: logits(model, inputs)), expected)
    assert torch.equal(once(lambda: generate(model, inputs)), tokens)
    with torch.no_grad():
        again = once(lambda: model.base_model.get_image_features(**images.arguments)).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))

    def chat():
        with remember_images(model):
            return [generate(model, inputs) for _ in range(2)]

    assert all(torch.equal(one, tokens) for one in once(chat))


@pytest.mark.parametrize("name", ["mistral3", "glm4v"])
def test_a_first_call_has_the_gradients_of_a_second(name):
    model, processor = pruned(name)
    inputs = shown(processor, ROWS)
    found = []
    for _ in range(2):  # the first call of its shapes, and one that knows them
        model.zero_grad()
        model(**inputs).logits.square().sum().backward()
        found.append([p.grad.clone() for p in encoder(model).parameters() if p.grad is not None])
    assert len(found[0]) > 4
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_inputs_are_pruned_with_one_run_of_the_encoder(name):
    model, processor = pruned(name)
    expected = logits(model, shown(processor, ROWS))[:, -1]
    model, processor = stock(name)
    inputs, config = shown(processor, ROWS), TokenPrunerConfig(budget=3, importance="distinct")
    prune_inputs(model, inputs, config, processor)
    runs = Counted(encoder(model))
    made = prune_inputs(model, inputs, config, processor)
    assert runs.runs == 1
    assert torch.allclose(logits(model, made)[:, -1], expected, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_a_question_is_the_same_in_every_way(name):
    model, processor = pruned(name, question_weight=0.5)
    inputs = shown(processor, ROWS)
    expected, tokens = logits(model, inputs)[:, -1], generate(model, inputs)
    for row, one in enumerate(ROWS):
        assert torch.allclose(logits(model, shown(processor, [one]))[0, -1], expected[row], atol=1e-4)
    plain, _ = pruned(name)
    assert not torch.allclose(logits(plain, inputs)[:, -1], expected, atol=1e-3)
    model, processor = stock(name)
    config = TokenPrunerConfig(budget=3, importance="distinct", question_weight=0.5)
    made = prune_inputs(model, shown(processor, ROWS), config, processor)  # ends of rows are no text of a question
    assert torch.allclose(logits(model, made)[:, -1], expected, atol=1e-4)
    assert torch.equal(generate(model, made), tokens)


@pytest.mark.parametrize("name", KINDS)
def test_copies_of_a_pair_do_what_it_does(name):
    model, processor = pruned(name, method="itg", importance="auto")
    inputs = shown(processor, ROWS)
    expected = logits(model, inputs)
    assert torch.equal(shown(pickle.loads(pickle.dumps(processor)), ROWS)["input_ids"], inputs["input_ids"])
    assert torch.equal(logits(copy.deepcopy(model), inputs), expected)


@pytest.mark.parametrize("name", KINDS)
def test_a_second_turn_on_a_cache_is_the_whole_conversation(name):
    model, processor = pruned(name, method="itg")
    inputs = dict(shown(processor, [[0]]))
    settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    settings |= {"output_logits": True, "suppress_tokens": [model.config.image_token_id]}
    first = model.generate(**inputs, **settings)
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole = {**inputs, **longer}
    if "mm_token_type_ids" in inputs:
        more = ids.shape[1] - inputs["mm_token_type_ids"].shape[1]
        whole["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, more))
    expected = model.generate(**whole, **settings)
    turn = model.generate(**longer, **{cache_name(): cache_of(first)}, **settings)
    assert torch.allclose(torch.stack(turn.logits), torch.stack(expected.logits), atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_masks_are_those_of_the_model_with_log_sizes_on_their_columns(name):
    def seen(**settings):
        model, processor = stock(name)
        model.set_attn_implementation("eager")
        config = TokenPrunerConfig(budget=3, importance="distinct", **settings)
        attach_token_pruner(model, processor, config)
        inputs = shown(processor, ROWS)
        found = masks(model, lambda: generate(model, inputs, max_new_tokens=2, min_new_tokens=2))
        return found, sizes(model, inputs) if config.proportional_attention else None

    places = "compact" if name == "mistral3" else "original"
    plain, _ = seen(proportional_attention=False, positions=places)
    sized, counts = seen(proportional_attention=True)
    assert counts.max() > 1
    assert len(plain) == len(sized) == 2 * (1 if name == HYBRID else 2)  # steps and layers with attention
    for before, after in zip(plain, sized, strict=True):
        bias = torch.nn.functional.pad(counts.log(), (0, max(0, before.shape[-1] - counts.shape[1])))
        allowed = before > -1e30
        assert torch.equal(allowed, after > -1e30)
        assert torch.allclose((before + bias[:, None, None, : before.shape[-1]])[allowed], after[allowed])


@pytest.mark.parametrize("name", KINDS)
def test_every_way_to_generate_agrees_with_sizes(name):
    model, processor = pruned(name, method="itg", proportional_attention=True)
    inputs = dict(shown(processor, ROWS))
    expected = generate(model, inputs)
    for how in (
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 5},
    ):
        assert torch.equal(generate(model, inputs, **how), expected), how
    beams = generate(model, inputs, num_beams=3)
    assert torch.equal(generate(model, inputs, num_beams=3, use_cache=False), beams)
    plain, _ = pruned(name, method="itg", proportional_attention=False)
    assert not torch.allclose(logits(plain, inputs)[:, -1], logits(model, inputs)[:, -1], atol=1e-3)


def test_layers_without_attention_are_refused_for_llm_layers_and_nothing_is_left():
    model, processor = stock(HYBRID)
    inputs = shown(processor, ROWS)
    expected = logits(model, inputs)
    with pytest.raises(
        ValueError, match=r"2 layers of full_attention, linear_attention; expected .* all of full attention"
    ):
        attach_token_pruner(model, processor, TokenPrunerConfig(budget=1.0, llm_layers=[1], importance="distinct"))
    assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("name", ["mistral3", "glm4v", "qwen3_vl_moe"])
def test_layers_that_drop_nothing_are_stock_and_others_go_on_from_forward(name):
    model, processor = stock(name)
    inputs = shown(processor, ROWS)
    expected, tokens = logits(model, inputs), generate(model, inputs)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=1.0, llm_layers=[1], llm_budget=1.0))
    assert torch.equal(logits(model, inputs), expected)
    assert torch.equal(generate(model, inputs), tokens)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=1.0, llm_layers=[1], llm_budget=2))
    step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
    assert torch.allclose(logits(model, inputs)[:, -1], step, atol=1e-4)
    assert not torch.allclose(step, expected[:, -1], atol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_comes_back_with_its_pruner(name, tmp_path):
    model, processor = stock(name)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, processor = load_token_pruned(tmp_path / "base", {"budget": 3, "importance": "distinct", "method": "itg"})
    inputs = shown(processor, ROWS)
    plain = logits(model, inputs)
    adapted = peft.get_peft_model(model, lora(target_modules="all-linear")).eval()  # of the encoder, too
    shake(adapted, 0)
    expected = logits(adapted, inputs)
    assert not torch.allclose(expected, plain, atol=1e-3)
    adapted.save_pretrained(tmp_path / "adapter")
    again, its_processor = load_token_pruned(tmp_path / "adapter")
    assert torch.equal(shown(its_processor, ROWS)["input_ids"], inputs["input_ids"])
    assert torch.equal(logits(again.eval(), inputs), expected)
    assert torch.equal(generate(again, inputs), generate(adapted, inputs))
    merged = again.merge_and_unload()
    assert merged.base_model.token_pruner.config.method == "itg"
    assert torch.allclose(logits(merged, inputs), expected, atol=5e-3)  # weights are rounded


@pytest.mark.parametrize("name", KINDS)
def test_the_command_line_prunes_a_folder(name, tmp_path):
    model, processor = stock(name)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    assert main(["prune", str(tmp_path / "base"), str(tmp_path / "out"), "--budget", "3"]) == 0
    again, its_processor = load_token_pruned(tmp_path / "out")
    model, processor = load_token_pruned(tmp_path / "base", TokenPrunerConfig(budget=3))
    inputs = shown(processor, ROWS)
    assert torch.equal(shown(its_processor, ROWS)["input_ids"], inputs["input_ids"])
    assert torch.equal(logits(again.eval(), inputs), logits(model.eval(), inputs))


@pytest.mark.parametrize("name", ["mistral3", "pixtral"])
@pytest.mark.parametrize("settings", [{"budget": 0.5}, {"budget": 8}, {"budget": 0.4, "adaptive": True}])
def test_inputs_with_rows_that_end_with_text_are_pruned(name, settings):
    """A picture that is kept whole keeps the ends of its rows; of others only what stands behind the last is left."""
    model, processor = stock(name)
    inputs = shown(processor, ROWS)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    config = TokenPrunerConfig(importance="distinct", **settings)
    made = prune_inputs(model, {**inputs, "labels": labels}, config, processor)
    units, token = iter(made["mm_encoder_outputs"]["image"].kept), model.config.image_token_id
    alone = [[shown(processor, [[i]])["input_ids"][0].tolist() for i in row] for row in ROWS]
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        ids = [one for one, seen in zip(ids, inputs["attention_mask"][row].tolist(), strict=True) if seen]
        expected, at = [], 0
        for picture in alone[row]:
            unit = next(units)
            n = picture.count(token)
            assert unit.num_tokens == n
            first = ids.index(token, at)
            end = first
            for _ in range(n - 1):
                end = ids.index(token, end + 1)
            whole = len(unit.indices) == n
            expected += ids[at:first] + (ids[first : end + 1] if whole else [token] * len(unit.indices))
            at = end + 1
        expected += ids[at:]
        stays = made["attention_mask"][row].bool()
        assert made["input_ids"][row][stays].tolist() == expected
        assert made["labels"][row][stays].tolist() == expected
    assert model(**made).loss.isfinite()


@pytest.mark.parametrize("name", ["mistral3", "pixtral", "aya_vision", "glm4v", "gemma4"])
@pytest.mark.parametrize("budget", [3, 0.5, 8])
def test_a_picture_has_as_many_tokens_in_a_prompt_as_its_size_says(name, budget):
    sizes_ = [(height, width) for _, height, width in IMAGES]
    _, whole = stock(name)
    _, processor = pruned(name, budget=budget)
    full, fewer = (one._get_num_multimodal_tokens(image_sizes=sizes_) for one in (whole, processor))
    assert full.num_image_patches == fewer.num_image_patches
    for i, (before, after) in enumerate(zip(full.num_image_tokens, fewer.num_image_tokens, strict=True)):
        lengths = [
            len(one(text=whole.image_token, images=image(*IMAGES[i]))["input_ids"][0]) for one in (whole, processor)
        ]
        assert before - after == lengths[0] - lengths[1]
        assert after > 0
