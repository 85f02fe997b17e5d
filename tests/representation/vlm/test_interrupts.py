"""A call that breaks off, by an error or by Ctrl-C, leaves nothing behind."""

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_efficient import remember_images
from hf_efficient.representation.vlm.decoder import calls
from hf_efficient.representation.vlm.families import watch
from tests.tiny import FAMILIES, ROWS, generate, language_model, prompts, pruned, video_prompts

SETTINGS: dict[str, dict[str, Any]] = {
    "llava": {"method": "itg", "llm_layers": [1], "llm_budget": 0.5},
    "qwen2_5_vl": {"method": "itg", "question_weight": 0.5, "importance": "received"},
    "llava_onevision": {"positions": "original"},
}


class Broken(LogitsProcessor):
    def __call__(self, *_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt


def traces(model: Any) -> Any:
    """Everything that a call could leave on a model: attributes, hooks, settings, and what is known of calls."""
    pruner = model.base_model.token_pruner
    modules = {
        name: (sorted(vars(m)), list(m._forward_hooks), list(m._forward_pre_hooks)) for name, m in model.named_modules()
    }
    state = {k: id(v) for k, v in vars(pruner).items()} | {k: id(v) for k, v in vars(model.base_model).items()}
    attention = [c._attn_implementation for c in (model.config, model.config.get_text_config())]
    last = [unit.indices.tolist() for unit in pruner.last]
    return modules, state, attention, last, calls._UNDER_WAY.get(), watch._WATCH.get(), len(watch._WATCHED)


def places(model: Any) -> dict[str, torch.nn.Module]:
    """Modules to break off in: in the encoder, behind it, in the language model's layers, in its head."""
    base, language = model.base_model, language_model(model)
    encoder = base.visual.blocks if hasattr(base, "visual") else towers_layers(base.vision_tower)
    return {"encoder": encoder[0], "encoder's end": encoder[-1], "layer": language.layers[0],
            "attention": language.layers[-1].self_attn, "head": model.lm_head}  # fmt: skip


def towers_layers(tower: Any) -> Any:
    inner = getattr(tower, "vision_model", tower)
    return inner.encoder.layers


@pytest.mark.parametrize(
    ("name", "error"), [("llava", KeyboardInterrupt), ("qwen2_5_vl", RuntimeError), ("llava_onevision", RuntimeError)]
)
def test_nothing_is_left_of_a_call_that_breaks_off(name, error):
    model, processor = pruned(name, **SETTINGS[name])
    arguments = prompts(name, ROWS)
    inputs, other = processor(**arguments), processor(**prompts(name, [[0]]))
    expected = generate(model, inputs)
    with torch.no_grad():
        logits = model(**inputs).logits
    generate(model, other)  # what is told afterwards is of this call
    before = traces(model)

    def stop(*_: Any) -> None:
        raise error("on purpose")

    for module in places(model).values():
        for run in (lambda: generate(model, inputs), lambda: model(**inputs),
                    lambda: generate(model, inputs, num_beams=2)):  # fmt: skip
            handle = module.register_forward_pre_hook(stop)
            with pytest.raises(error, match="on purpose"):
                run()
            handle.remove()
            if module is model.lm_head:  # the base model's call, which tells what it kept, has ended well
                generate(model, other)
            assert traces(model) == before
    with pytest.raises(KeyboardInterrupt):
        model.generate(**inputs, max_new_tokens=3, logits_processor=LogitsProcessorList([Broken()]))
    assert traces(model) == before
    if FAMILIES[name].video:
        shown = processor(**video_prompts(name))
        handle = places(model)["encoder's end"].register_forward_pre_hook(stop)
        with pytest.raises(error, match="on purpose"):
            generate(model, shown)
        handle.remove()
        assert traces(model) == before
    assert torch.equal(generate(model, inputs), expected)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_nothing_is_remembered_of_a_look_that_breaks_off():
    model, processor = pruned("llava")
    first, second = (processor(**prompts("llava", [[i]])) for i in (0, 1))
    tower = model.base_model.vision_tower

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with remember_images(model, size=1):
        expected = generate(model, first)
        handle = tower.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            generate(model, second)
        assert torch.equal(generate(model, first), expected)  # still known: the tower would break off
        handle.remove()
        assert generate(model, second).shape == expected.shape
    assert not hasattr(model.base_model, "image_memories")


def test_blocks_that_remember_may_overlap():
    model, _ = pruned("llava")
    one, two = remember_images(model), remember_images(model)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert len(model.base_model.image_memories) == 1
    two.__exit__(None, None, None)
    assert not hasattr(model.base_model, "image_memories")
