"""Types without a file: what must hold of those that prove themselves."""

import numpy as np
import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner, load_token_pruned, prune_inputs
from hf_efficient.representation.vlm.families.generic import REMEMBERED, remember
from tests.tiny import IMAGES, ROWS, generate, image, recorded
from tests.zoo import REFUSED, ZOO, check_seen, kept_columns, parameters, shown, stock

BUDGET = 3
#: tokens of the text stand among those of an image
ROWS_APART = ("mistral3", "pixtral", "mistral_large4", "step3p7", "molmo2")

TYPES = parameters(n for n in ZOO if n not in REFUSED)


def pruned(name, **settings):
    config = TokenPrunerConfig(**{"budget": BUDGET, "importance": "distinct", **settings})
    return attach_token_pruner(*stock(name), config)


@pytest.mark.parametrize("name", TYPES)
def test_keeping_all_tokens_is_the_stock_model_bit_for_bit(name):
    model, processor = stock(name)
    inputs = shown(processor, ROWS)
    whole, whole_processor = pruned(name, budget=1.0)
    again = shown(whole_processor, ROWS)
    for key, value in inputs.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[key])), key
    assert torch.equal(model(**inputs).logits, whole(**again).logits)
    assert torch.equal(generate(model, inputs), generate(whole, again))


@pytest.mark.parametrize("method", ["id_pruner", "itg", "tome"])
@pytest.mark.parametrize("name", TYPES)
def test_k_is_exact_and_a_batch_is_its_rows_and_generate_goes_on_from_forward(name, method):
    _, full_processor = stock(name)
    model, processor = pruned(name, method=method)
    inputs, token = shown(processor, ROWS), model.config.image_token_id
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        last = model.base_model.token_pruner.last
        step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
        assert torch.allclose(logits, step, atol=1e-4)
        for row, one in enumerate(ROWS):
            assert torch.allclose(model(**shown(processor, [one])).logits[0, -1], logits[row], atol=1e-4)
    assert sum(unit.num_tokens for unit in last) == int((shown(full_processor, ROWS)["input_ids"] == token).sum())
    assert [len(unit.indices) for unit in last] == [min(BUDGET, unit.num_tokens) for unit in last]
    assert sum(len(unit.indices) for unit in last) == int((inputs["input_ids"] == token).sum())


@pytest.mark.parametrize("positions", ["auto", "original"])
@pytest.mark.parametrize("name", TYPES)
def test_the_language_model_sees_what_it_would_have_seen_of_the_kept_tokens(name, positions):
    model, processor = stock(name)
    full = shown(processor, ROWS[1:])
    with recorded(model) as stock_calls:
        generate(model, full)
    if positions == "original" and name in ROWS_APART:
        with pytest.raises(ValueError, match="positions='original' has no meaning"):
            pruned(name, positions=positions)
        return
    model, processor = pruned(name, positions=positions)
    inputs = shown(processor, ROWS[1:])
    with recorded(model) as calls:
        generate(model, inputs)
    (columns,) = kept_columns(full["input_ids"], model.config.image_token_id, model.base_model.token_pruner.last)
    check_seen(stock_calls, calls, columns, full["input_ids"].shape[1], positions == "original")


@pytest.mark.parametrize("name", TYPES)
def test_inputs_are_pruned_as_an_attached_pair_does(name):
    model, processor = pruned(name)
    expected = model(**shown(processor, ROWS)).logits[:, -1]
    detach_token_pruner(model, processor)
    config = TokenPrunerConfig(budget=BUDGET, importance="distinct")
    inputs = prune_inputs(model, shown(processor, ROWS), config)
    assert torch.allclose(model(**inputs).logits[:, -1], expected, atol=1e-4)


@pytest.mark.parametrize("name", TYPES)
def test_a_saved_pair_comes_back_with_its_pruner(name, tmp_path):
    model, saved = pruned(name)
    inputs = shown(saved, ROWS)
    expected, real = model(**inputs).logits, inputs["attention_mask"].bool()
    model.save_pretrained(tmp_path)
    saved.save_pretrained(tmp_path)
    again, processor = load_token_pruned(tmp_path)
    token = model.config.image_token_id  # other tokens may come back as others: stock picks tokenizers by model type
    counts = [(shown(one, ROWS)["input_ids"] == token).sum(1).tolist() for one in (processor, saved)]
    assert counts[0] == counts[1]
    assert torch.allclose(again(**inputs).logits[real], expected[real], atol=1e-5)


@pytest.mark.parametrize("name", TYPES)
def test_counts_for_serving_are_those_of_the_prompt(name):
    _, full_processor = stock(name)
    sizes = [(height, width) for _, height, width in IMAGES]
    try:
        full = full_processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    except (AttributeError, NotImplementedError):
        pytest.skip("the stock processor does not count")
    _, processor = pruned(name)
    counted = processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens
    for i, (before, after) in enumerate(zip(full, counted, strict=True)):
        lengths = [shown(one, [[i]])["input_ids"].shape[1] for one in (full_processor, processor)]
        assert before - after == lengths[0] - lengths[1]


@pytest.mark.parametrize("name", ["mistral3", "aya_vision", "glm4v"])
def test_models_in_bfloat16_are_pruned(name):
    model, processor = stock(name)
    attach_token_pruner(model.to(torch.bfloat16), processor, TokenPrunerConfig(budget=BUDGET, importance="distinct"))
    inputs = shown(processor, ROWS).to(torch.bfloat16)
    assert model(**inputs).logits.isfinite().all()
    assert all(len(unit.indices) == min(BUDGET, unit.num_tokens) for unit in model.base_model.token_pruner.last)


class Emptied(dict):
    """A table that another thread empties as soon as something is put in."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.clear()


def test_the_table_of_shapes_may_be_emptied_by_another_thread_meanwhile(monkeypatch):
    model, processor = pruned("glm4v")
    monkeypatch.setattr(model.base_model.token_pruner.family, "known", Emptied())
    assert model(**shown(processor, ROWS)).logits.isfinite().all()


def test_of_too_many_shapes_the_oldest_are_forgotten():
    table: dict[int, str] = {}
    for i in range(REMEMBERED + 3):
        remember(table, i, str(i))
    assert list(table.items()) == [(i, str(i)) for i in range(3, REMEMBERED + 3)]


def test_sounds_of_a_prompt_do_not_move_what_is_kept_of_its_pictures():
    model, processor = stock("qwen2_5_omni_thinker")
    text = "w3 <|audio_bos|><|AUDIO|><|audio_eos|> w4 <|vision_bos|><|IMAGE|><|vision_eos|> w5"
    sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    given = {"text": text, "images": image(*IMAGES[0]), "audio": sound, "return_tensors": "pt"}
    full = processor(**given)
    with recorded(model) as calls:
        model(**full)
    before = calls[0]["position_ids"]
    config = TokenPrunerConfig(budget=BUDGET, importance="distinct")
    attach_token_pruner(model, processor, config)
    with recorded(model) as calls:
        model(**processor(**given))
    (columns,) = kept_columns(full["input_ids"], model.config.image_token_id, model.base_model.token_pruner.last)
    assert len(columns) < full["input_ids"].shape[1]
    assert torch.equal(calls[0]["position_ids"], before[..., columns])
