"""torch.compile and flex attention with an attached pruner."""

import pytest
import torch
from transformers import StaticCache

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.compat.transformers import cache_name
from tests.tiny import ROWS, generate, prompts, pruned, stock
from tests.zoo import shown
from tests.zoo import stock as zoo_stock

CASES = [("llava", "auto"), ("llava", "original"), ("qwen2_5_vl", "auto"), ("qwen3_vl", "auto")]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_agrees(name, positions, backend):
    model, processor = pruned(name, positions=positions)
    compiled = torch.compile(model, backend=backend)
    for rows in (ROWS, [[0]]):
        inputs = processor(**prompts(name, rows))
        with torch.no_grad():
            assert torch.allclose(compiled(**inputs).logits, model(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "positions"),
    [*CASES[1:3], *(pytest.param(*case, marks=pytest.mark.slow) for case in (CASES[0], CASES[3]))],
)
def test_compiled_models_agree(name, positions):
    """Traced by dynamo, run by torch: what breaks under torch.compile breaks here."""
    compiled_agrees(name, positions, "eager")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "positions"), CASES)
def test_models_compiled_by_inductor_agree(name, positions):
    compiled_agrees(name, positions, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_generation_with_a_compiled_static_cache_agrees(name):
    model, processor = pruned(name)
    inputs = processor(**prompts(name, ROWS))
    expected = generate(model, inputs)
    model.forward = torch.compile(model.forward, backend="inductor")
    assert torch.equal(generate(model, inputs, cache_implementation="static"), expected)


@pytest.mark.parametrize(("name", "positions"), CASES)
def test_a_decoding_step_is_one_graph(name, positions):
    """As in generation with a static cache, where every break costs a launch per token."""
    model, processor = pruned(name, positions=positions)
    inputs = processor(**prompts(name, [[0]]))
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(model.config.get_text_config(), max_cache_len=length + 4)
    with torch.no_grad():
        first = model(**inputs, **{cache_name(): cache}, use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        axes = (4, 1, 1) if "qwen" in name else (1, 1)
        step = {
            "input_ids": token,
            "position_ids": torch.full(axes, length),
            "attention_mask": torch.ones(1, length + 1, dtype=torch.long),
            cache_name(): cache,
        }
        torch.compile(model, backend="eager", fullgraph=True)(**step)


@pytest.mark.slow  # compiles by itself
def test_flex_attention_agrees_with_sdpa():
    model, processor = pruned("llava")
    inputs = processor(**prompts("llava", ROWS))
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1]
        try:
            flex, _ = pruned("llava", "flex_attention")
            logits = flex(**inputs).logits[:, -1]
        except (RuntimeError, NotImplementedError, ValueError, ImportError) as error:
            pytest.skip(f"no flex attention on this machine: {type(error).__name__}: {str(error)[:150]}")
    assert torch.allclose(logits, expected, atol=1e-4)


def kept_of_compiled(pair, inputs, config, when, change):
    """What is kept where an encoder is compiled before or after a pruner is attached, or never."""
    model, processor = pair
    if when == "before":
        change(model.base_model)
    attach_token_pruner(model, processor, config)
    if when == "after":
        change(model.base_model)
    getattr(model.base_model.token_pruner.family, "maps", {}).clear()
    with torch.no_grad():
        model(**inputs(processor))
    return model.base_model.token_pruner.last[0].indices.tolist()


def in_place(base):
    for layer in base.vision_tower.transformer.layers:
        layer.compile(backend="eager")


def whole_in_place(base):
    base.vision_tower.compile(backend="eager")


def layers(base):
    parts = base.vision_tower.transformer.layers
    for i, layer in enumerate(parts):
        parts[i] = torch.compile(layer, backend="eager")


def whole(base):
    base.vision_tower = torch.compile(base.vision_tower, backend="eager")


CHANGES = [("before", whole_in_place), ("after", in_place), ("after", whole), ("before", whole), ("before", layers)]


def test_a_compiled_encoder_gives_the_importance_that_it_gives():
    config = TokenPrunerConfig(budget=5, method="top_importance", importance="received")

    def kept(*how):
        return kept_of_compiled(zoo_stock("mistral3"), lambda processor: shown(processor, [[0]]), config, *how)

    expected = kept("never", None)
    for when, change in CHANGES:
        assert kept(when, change) == expected, (when, change.__name__)


def test_a_compiled_encoder_of_a_type_with_a_file_gives_the_importance_that_it_gives():
    config = TokenPrunerConfig(budget=5, method="top_importance", importance="cls")

    def kept(when):
        return kept_of_compiled(
            stock("llava"), lambda processor: processor(**prompts("llava", [[0]])), config, when, whole
        )

    assert kept("never") == kept("after") == kept("before")
