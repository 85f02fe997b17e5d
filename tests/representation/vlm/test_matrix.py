"""Every family with every method: exact K, forward equals generate, a batch equals single runs, all kept is stock."""

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from tests.representation.methods import METHODS
from tests.tiny import FAMILIES, ROWS, budget, prompts, stock, video_prompts


@pytest.fixture(scope="module")
def families():
    """Models of every family, built when first asked for; attaching again replaces what was attached."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = (*stock(name), stock(name)[1])
        return built[name]

    return get


def single(name, arguments, row):
    """The processor's arguments for one row of a batch of prompts."""
    start = sum(len(chosen) for chosen in ROWS[:row])
    shown = slice(row, row + 1) if FAMILIES[name].nested else slice(start, start + len(ROWS[row]))
    return {**arguments, "text": arguments["text"][row : row + 1], "images": arguments["images"][shown]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_every_method(families, name, method):
    model, processor, full_processor = families(name)
    config = TokenPrunerConfig(method=method, budget=budget(name))
    attach_token_pruner(model, processor, config)
    arguments = prompts(name, ROWS)
    inputs = processor(**arguments)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        last = model.base_model.token_pruner.last
        full = full_processor(**arguments)["input_ids"]
        token = model.config.image_token_id
        assert sum(unit.num_tokens for unit in last) == int((full == token).sum())
        assert sum(len(unit.indices) for unit in last) == int((inputs["input_ids"] == token).sum())
        for unit in last:
            assert len(unit.indices) == config.tokens_to_keep(unit.num_tokens)
            assert (unit.indices.diff() > 0).all()
            assert 0 <= unit.indices[0] <= unit.indices[-1] < unit.num_tokens
            assert unit.mass is None or unit.mass.sum() == unit.num_tokens
        step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
        assert torch.allclose(logits, step, atol=1e-4)
        for row in range(len(ROWS)):
            alone = processor(**single(name, arguments, row))
            assert torch.allclose(model(**alone).logits[0, -1], logits[row], atol=1e-4)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "id_pruner"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen3_vl"])
def test_keeping_all_tokens_is_the_stock_model_with_every_method(families, name, method):
    model, processor, full_processor = families(name)
    attach_token_pruner(model, processor, TokenPrunerConfig(method=method, budget=1.0))
    inputs = processor(**prompts(name, ROWS))
    stock_model, _ = stock(name)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits[real], stock_model(**inputs).logits[real], atol=1e-4)
    assert torch.equal(inputs["input_ids"], full_processor(**prompts(name, ROWS))["input_ids"])


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.video])
def test_videos_take_every_generator(families, name):
    model, processor, _ = families(name)
    for method in ("itg", "tome", "visionzip"):
        attach_token_pruner(model, processor, TokenPrunerConfig(method=method, budget=budget(name)))
        inputs = processor(**video_prompts(name))
        with torch.no_grad():
            logits = model(**inputs).logits[:, -1]
        step = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
        assert torch.allclose(logits, step, atol=1e-4)


def test_deepstack_levels_are_mixed_by_one_assignment(families):
    """Qwen3-VL: the tokens of every level are the same sums of that level's tokens."""
    model, processor, full_processor = families("qwen3_vl")
    attach_token_pruner(model, processor, TokenPrunerConfig(method="itg", budget=3))
    stock_model, _ = stock("qwen3_vl")
    arguments = prompts("qwen3_vl", [[0]])
    full, fewer = full_processor(**arguments), processor(**arguments)
    with torch.no_grad():
        names = ("pixel_values", "image_grid_thw")
        whole = stock_model.model.get_image_features(**{k: full[k] for k in names}, return_dict=True)
        ours = model.model.get_image_features(**{k: fewer[k] for k in names}, return_dict=True)
    (unit,) = ours.kept
    for level, stock_level in zip(ours.deepstack_features, whole.deepstack_features, strict=True):
        torch.testing.assert_close(level[0], unit.mixture.of(stock_level[0][None])[0])
    torch.testing.assert_close(ours.pooler_output[0], unit.mixture.of(whole.pooler_output[0][None])[0])
    for k in range(3):  # and they are means, up to their length
        members = unit.assignment == k
        weight = unit.mixture.weights[0, members]
        assert weight.sum() == pytest.approx(1)
        mean = (weight[:, None] * whole.deepstack_features[0][0][members]).sum(0)
        assert torch.cosine_similarity(mean, ours.deepstack_features[0][0][k], dim=0) == pytest.approx(1)


def test_line_breaks_of_generated_rows_stay_where_their_tokens_are(families):
    """LLaVA-NeXT: line breaks are never mixed with tokens."""
    model, processor, full_processor = families("llava_next")
    for share in (0.2, 0.5, 0.9):
        attach_token_pruner(model, processor, TokenPrunerConfig(method="itg", budget=share))
        inputs = processor(**prompts("llava_next", [[0]]))
        with torch.no_grad():
            model(**inputs)
        (unit,) = model.base_model.token_pruner.last
        stock_model, _ = stock("llava_next")
        full = full_processor(**prompts("llava_next", [[0]]))
        with torch.no_grad():
            features = stock_model.model.get_image_features(
                full["pixel_values"], image_sizes=full["image_sizes"], return_dict=True
            ).pooler_output[0]
        breaks = (features == stock_model.model.image_newline).all(1)
        tokens = unit.tokens(features)
        assert len(tokens) == len(unit.indices) == TokenPrunerConfig(budget=share).tokens_to_keep(len(features))
        assert torch.equal(tokens[breaks[unit.indices]], features[unit.indices][breaks[unit.indices]])
        mixed = unit.mixture
        for source, target, weight in zip(mixed.source[0], mixed.target[0], mixed.weights[0], strict=True):
            if weight > 0:
                assert bool(breaks[source]) == bool(breaks[unit.indices[target]])
