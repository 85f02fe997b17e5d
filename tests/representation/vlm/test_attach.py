"""Attaching, detaching and what goes wrong in between: every mistake is found before anything is computed."""

import inspect
from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner, token_pruner
from hf_efficient.representation.vlm.kept import KeptUnit
from tests.representation.methods import METHODS
from tests.tiny import FAMILIES, ROWS, budget, generate, prompts, pruned, recorded, stock


@pytest.fixture
def no_encoding(monkeypatch):
    """Fails the test if a vision encoder runs."""

    def refuse(model: Any) -> Any:
        def hook(*_: Any) -> None:
            raise AssertionError("the images were encoded before the mistake was found")

        base = model.base_model
        tower = next(
            t for n in ("vision_tower", "visual", "vision_model", "image_tower") if (t := getattr(base, n, None))
        )
        tower.register_forward_pre_hook(hook)
        return model

    return refuse


@pytest.mark.parametrize("name", FAMILIES)
def test_detaching_restores_classes_attributes_and_results(name):
    model, processor = stock(name)
    inputs = processor(**prompts(name, ROWS))
    classes = type(model), type(model.base_model), type(processor)
    attributes = set(vars(model)), set(vars(model.base_model)), set(vars(processor))
    config = model.config.to_dict()
    expected = generate(model, inputs)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=budget(name)))
    assert generate(model, processor(**prompts(name, ROWS))).shape == expected.shape
    detach_token_pruner(model, processor)
    assert (type(model), type(model.base_model), type(processor)) == classes
    assert (set(vars(model)), set(vars(model.base_model)), set(vars(processor))) == attributes
    assert model.config.to_dict() == config
    again = processor(**prompts(name, ROWS))
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(generate(model, again), expected)
    detach_token_pruner(model, processor)  # detaching what is stock does nothing


@pytest.mark.parametrize("name", FAMILIES)
def test_attached_objects_are_of_their_stock_classes(name):
    model, processor = stock(name)
    before = [(type(x), inspect.signature(type(x).__init__)) for x in (model, model.base_model, processor)]
    functions = {n: inspect.signature(getattr(model.base_model, n)) for n in ("forward", "get_image_features")}
    attach_token_pruner(model, processor, TokenPrunerConfig())
    for thing, (cls, signature) in zip((model, model.base_model, processor), before, strict=True):
        assert isinstance(thing, cls)
        assert type(thing).__name__ == cls.__name__
        assert type(thing).__qualname__ == cls.__qualname__
        assert type(thing).__module__ == cls.__module__
        assert inspect.signature(type(thing).__init__) == signature
    for function, signature in functions.items():
        assert inspect.signature(getattr(model.base_model, function)) == signature


def test_attaching_again_replaces_the_config():
    model, processor = pruned("llava", budget=4)
    cls = type(model)
    for config in (TokenPrunerConfig(budget=7), {"budget": 3, "method": "uniform"}):
        assert attach_token_pruner(model, processor, config) == (model, processor)
        assert type(model) is cls
        k = config["budget"] if isinstance(config, dict) else config.budget
        inputs = processor(**prompts("llava", [[0]]))
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == k
        model(**inputs)
        assert len(model.base_model.token_pruner.last[0].indices) == k


def test_attaching_from_a_folder(tmp_path):
    TokenPrunerConfig(budget=6).save_pretrained(tmp_path)
    model, _ = attach_token_pruner(*stock("llava"), config=tmp_path)
    assert model.base_model.token_pruner.config.budget == 6


def test_the_context_manager_restores_what_was_there():
    model, processor = stock("llava")
    cls = type(model)
    with token_pruner(model, processor, TokenPrunerConfig(budget=4)) as (inside, _):
        assert inside is model
        assert type(model) is not cls
        with token_pruner(model, processor, {"budget": 9}):
            assert model.base_model.token_pruner.config.budget == 9
            assert processor.token_pruner.config.budget == 9
        assert model.base_model.token_pruner.config.budget == 4
        model(**processor(**prompts("llava", [[0]])))
    assert type(model) is cls
    assert not hasattr(model.base_model, "token_pruner")
    assert not hasattr(processor, "token_pruner")
    with pytest.raises(RuntimeError, match="on purpose"), token_pruner(model, processor, TokenPrunerConfig()):
        raise RuntimeError("on purpose")
    assert type(model) is cls


@pytest.mark.parametrize("hook_first", [True, False])
def test_modules_with_accelerate_hooks_are_pruned_and_restored(hook_first):
    """Accelerate keeps a module's forward in the instance, where a change of class does not reach it."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, processor = stock("llava")
    expected = model(**processor(**prompts("llava", ROWS))).logits
    for step in ("hook", "attach") if hook_first else ("attach", "hook"):
        if step == "hook":
            hooks.add_hook_to_module(model.base_model, hooks.ModelHook())
        else:
            attach_token_pruner(model, processor, TokenPrunerConfig(budget=4, positions="original"))
    pruned_model, _ = pruned("llava", budget=4, positions="original")
    inputs = processor(**prompts("llava", ROWS))
    assert torch.allclose(model(**inputs).logits, pruned_model(**inputs).logits)
    assert len(model.base_model.token_pruner.last) == 3
    detach_token_pruner(model, processor)
    assert torch.equal(model(**processor(**prompts("llava", ROWS))).logits, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen3_vl"])
def test_every_method_keeps_exactly_k(name, method):
    model, processor = pruned(name, method=method, budget=7)
    inputs = processor(**prompts(name, ROWS))
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 21
    assert generate(model, inputs).shape == (2, 5)
    assert [len(unit.indices) for unit in model.base_model.token_pruner.last] == [7, 7, 7]


def test_what_was_kept_is_told_per_image():
    model, processor = pruned("llava", budget=5)
    generate(model, processor(**prompts("llava", ROWS)))
    last = model.base_model.token_pruner.last
    assert len(last) == 3
    for unit in last:
        assert isinstance(unit, KeptUnit)
        assert (unit.modality, unit.num_tokens, unit.grid, unit.indices.shape) == ("image", 16, (4, 4), (5,))
    model(**processor(**prompts("llava", [[0]])))
    assert len(model.base_model.token_pruner.last) == 1


# mistakes


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_of_the_stock_processor_is_found_before_encoding(name, no_encoding):
    model, _ = pruned(name)
    inputs = stock(name)[1](**prompts(name, ROWS))
    no_encoding(model)
    for call in (model, model.base_model, model.generate):
        with pytest.raises(ValueError, match=r"placeholders: found \d+, expected .* without the pruner: attach both"):
            call(**{k: v for k, v in inputs.items() if k != "labels"})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_of_another_budget_is_found_before_encoding(name, no_encoding):
    model, _ = pruned(name)
    inputs = pruned(name, budget=budget(name) - 1)[1](**prompts(name, ROWS))
    no_encoding(model)
    with pytest.raises(ValueError, match=rf"expected \d+ in \d+ unit\(s\) of {budget(name)}.* same config"):
        model.generate(**inputs)


def test_placeholders_of_the_right_total_in_the_wrong_places_are_found(no_encoding):
    """The stock check compares totals only: a token moved from one image to another would pass it."""
    model, processor = pruned("llava", budget=4)
    inputs = processor(**prompts("llava", [[0], [1]]))
    image, ids = model.config.image_token_id, inputs["input_ids"]
    first = (ids == image).nonzero()
    ids[tuple(first[0])] = 5
    ids[1, -1] = image
    no_encoding(model)
    with pytest.raises(ValueError, match="in other runs than the units need"):
        model(**inputs)
    split = processor(**prompts("llava", [[0]]))
    ids = split["input_ids"]
    ids[0, -1], ids[tuple((ids == image).nonzero()[1])] = image, 5
    with pytest.raises(ValueError, match="one unbroken run"):
        model(**split)


def test_a_processor_whose_model_was_detached_is_found():
    model, processor = pruned("llava")
    detach_token_pruner(model, stock("llava")[1])
    with pytest.raises(ValueError, match=r"attached with has none any more.*attach_token_pruner"):
        processor(**prompts("llava", [[0]]))


def test_a_processor_whose_model_prunes_differently_is_found():
    model, processor = pruned("llava", budget=4)
    attach_token_pruner(model, stock("llava")[1], TokenPrunerConfig(budget=5))
    with pytest.raises(ValueError, match=r"prune differently.*budget=4.*budget=5.*Attach both together"):
        processor(**prompts("llava", [[0]]))


def test_a_processor_outlives_its_model():
    model, processor = pruned("llava", budget=4)
    image = model.config.image_token_id
    del model
    assert int((processor(**prompts("llava", [[0]]))["input_ids"] == image).sum()) == 4


@pytest.mark.parametrize(
    ("name", "other"), [("llava", "llava_next"), ("qwen2_5_vl", "qwen3_vl"), ("smolvlm", "idefics3")]
)
def test_a_processor_of_another_family_is_refused(name, other):
    model, _ = stock(name)
    _, processor = stock(other)
    with pytest.raises(ValueError, match=rf"{type(processor).__name__} is not the processor of .*; expected"):
        attach_token_pruner(model, processor, TokenPrunerConfig())
    assert not hasattr(model.base_model, "token_pruner")


def test_a_processor_with_other_placeholder_ids_is_refused():
    model, processor = stock("llava")
    model.config.image_token_id += 1
    with pytest.raises(ValueError, match=r"'<image>' \(id \d+\) for a image|looks for id"):
        attach_token_pruner(model, processor, TokenPrunerConfig())


def test_a_model_without_its_head_is_refused():
    model, processor = stock("llava")
    with pytest.raises(ValueError, match="no language head; pass the whole model"):
        attach_token_pruner(model.base_model, processor, TokenPrunerConfig())


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("llava", "llava_next", "video_llava", "internvl")])
def test_cls_attention_of_an_encoder_without_cls_is_refused(name):
    model, processor = stock(name)
    cls = type(model)
    with pytest.raises(
        ValueError, match=r"importance='cls' cannot be had from .*; it offers: received, distinct, norm"
    ):
        attach_token_pruner(model, processor, TokenPrunerConfig(importance="cls"))
    assert type(model) is cls


def test_wrong_configs_are_refused():
    model, processor = stock("llava")
    with pytest.raises(ValueError, match="Unknown token pruner settings"):
        attach_token_pruner(model, processor, {"budgets": 3})
    with pytest.raises(ValueError, match="budget=0"):
        attach_token_pruner(model, processor, {"budget": 0})
    with pytest.raises(FileNotFoundError, match=r"token_pruner_config\.json"):
        attach_token_pruner(model, processor, inspect.getfile(torch).rsplit("/", 1)[0])


def test_pixels_and_encoded_images_together_are_refused_as_in_stock():
    model, processor = pruned("llava")
    inputs = processor(**prompts("llava", [[0]]))
    with pytest.raises(ValueError, match="both pixel_values and mm_encoder_outputs"):
        model(**inputs, mm_encoder_outputs={"image": None})


@pytest.mark.parametrize(
    "settings", [{}, {"method": "itg"}, {"positions": "original"}, {"budget": 1.0, "llm_layers": [1], "llm_budget": 5}]
)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_embeddings_in_place_of_ids_work(name, settings):
    """Placeholders are recognised by their embedding, so sizes, positions and layers are as with ids."""
    model, processor = pruned(name, **settings)
    inputs = dict(processor(**prompts(name, ROWS)))
    expected = model(**inputs).logits
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with recorded(model):
        assert torch.allclose(model(**inputs, inputs_embeds=embeds).logits, expected, atol=1e-5)


@pytest.mark.parametrize("model", [None, "llava-hf/llava-1.5-7b-hf"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match="expected a vision-language model of transformers"):
        attach_token_pruner(model, None, TokenPrunerConfig())
