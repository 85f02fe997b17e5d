"""What a proof holds for: weights that are elsewhere between calls, other processors, configs that are changed."""

import functools
import importlib
import pickle
import re
import threading
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from hf_efficient import TokenPrunerConfig, attach_token_pruner, prune_inputs
from hf_efficient.representation.vlm import proof
from hf_efficient.representation.vlm.families.generic import Layout
from hf_efficient.representation.vlm.proof.samples import SHAPES, picture
from tests.tiny import ROWS, generate
from tests.zoo import shown, stock


@pytest.mark.parametrize("how", [cpu_offload, disk_offload])
def test_offloaded_weights_are_proven_where_they_run(how, monkeypatch, tmp_path):
    monkeypatch.setattr(proof, "_PROVEN", {})
    config = TokenPrunerConfig(budget=3, importance="distinct")
    model, processor = attach_token_pruner(*stock("mistral3"), config)
    inputs = shown(processor, ROWS)
    expected = model(**inputs).logits
    model, processor = stock("mistral3")
    proof._PROVEN.clear()
    how(model, *([str(tmp_path)] if how is disk_offload else []), execution_device="cpu")
    assert model.get_input_embeddings().weight.is_meta
    attach_token_pruner(model, processor, config)
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(generate(model, inputs), generate(attach_token_pruner(*stock("mistral3"), config)[0], inputs))


def test_where_proofs_differ_inputs_are_pruned_with_their_processor_only(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    config = TokenPrunerConfig(budget=3, importance="distinct")
    model, processor = stock("aya_vision")
    inputs = processor(text=processor.image_token, images=picture(0, 56, 56), return_tensors="pt")
    expected = prune_inputs(model, inputs, config, processor)
    other = stock("aya_vision")[1]
    other.image_processor.max_patches = 2  # another processor, of which the same is proven
    prune_inputs(model, inputs, config, other)
    assert torch.equal(prune_inputs(model, inputs, config)["input_ids"], expected["input_ids"])
    (table,) = proof._PROVEN.values()
    family = list(table.values())[1]
    monkeypatch.setitem(family.layouts, "image", Layout(4))
    with pytest.raises(ValueError, match=r"was proven with 2 processors.*Say which one"):
        prune_inputs(model, inputs, config)
    assert torch.equal(prune_inputs(model, inputs, config, processor)["input_ids"], expected["input_ids"])


def pruned(model, inputs, processor):
    made = prune_inputs(model, dict(inputs), TokenPrunerConfig(budget=3, importance="distinct"), processor)
    return made["mm_encoder_outputs"]["image"].pooler_output


def test_threads_that_need_the_same_proof_make_one(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    model, processor = stock("mistral3")
    inputs = shown(processor, ROWS)
    found: list[Any] = []

    def work():
        try:
            found.append(pruned(model, inputs, processor))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = pruned(model, inputs, processor)
    assert [torch.equal(torch.cat([*one]), torch.cat([*expected])) for one in found] == [True] * 4
    assert "forward" not in vars(model.base_model.language_model)


@pytest.mark.parametrize(("name", "other"), [("mistral3", 1), ("vipllava", [1, 1])])
def test_importance_is_not_that_of_a_layer_that_a_changed_config_has_no_features_of(name, other):
    def kept(changed, **settings):
        pair = stock(name)
        config = TokenPrunerConfig(budget=3, method="top_importance", **settings)
        model, processor = attach_token_pruner(*pair, config)
        inputs = shown(processor, [[0]])
        generate(model, inputs)
        if changed:
            model.config.vision_feature_layer = other
            generate(model, inputs)
        return model.token_pruner.last[0].indices.tolist()

    assert kept(True, importance="auto") == kept(True, importance="distinct")
    assert kept(False, importance="auto") != kept(False, importance="distinct")
    source = "cls" if name == "vipllava" else "received"
    with pytest.raises(ValueError, match=rf"_layer is {re.escape(str(other))}, and was .* when the pair was proven"):
        kept(True, importance=source)
    assert kept(False, importance=source) == kept(False, importance="auto")


def test_a_model_that_was_proven_has_its_hooks_and_can_be_pickled_as_before(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    model, processor = stock("mistral3")  # a call of it puts hooks there that cannot be pickled
    shown_layer: list[int] = []
    layer = model.base_model.vision_tower.transformer.layers[0]
    layer.register_forward_hook(note := functools.partial(seen, shown_layer))
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=3, importance="distinct"))
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    assert hooks == [note]
    again = pickle.loads(pickle.dumps(model))
    inputs = shown(processor, ROWS)
    shown_layer.clear()
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    assert len(shown_layer) == 1


def seen(calls, *_):
    calls.append(1)


def test_what_a_proof_is_shown_is_followed_backwards_once(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    of_encoder, followed = importlib.import_module("hf_efficient.representation.vlm.proof.encoder"), []
    true = of_encoder.map_of

    def counting(images, *where):
        followed.append(id(images))
        return true(images, *where)

    monkeypatch.setattr(of_encoder, "map_of", counting)
    attach_token_pruner(*stock("mistral3"), TokenPrunerConfig(budget=3, importance="received"))
    assert len(followed) == len(set(followed)) == len(SHAPES) + 1  # pictures alone, and a batch


@pytest.mark.parametrize("divide", ["of_features", "of_run"])
def test_tokens_that_tiles_of_the_proven_size_do_not_make_up_are_refused(divide):
    layout = Layout(4)
    cut = layout.of_run if divide == "of_run" else lambda tokens: layout.of_features([tokens - 3, 3])
    assert cut(12) == [4, 4, 4]
    with pytest.raises(ValueError, match=r"10 .* cannot be divided into tiles of 4 tokens, which this pair"):
        cut(10)
