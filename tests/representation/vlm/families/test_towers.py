"""Importance learned by hooks equals the attention that the stock encoder computes in eager mode."""

import logging
from contextlib import contextmanager

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.vlm import features
from hf_efficient.representation.vlm.families import towers
from tests.representation.vlm.families.encoders import eager_attention
from tests.tiny import FAMILIES, ROWS, prompts, pruned, video_prompts
from tests.tiny_models import llava

# family -> (encoder, index of the layer whose features are used, source)
LAYERS = {
    "llava": ("vision_tower", -2, "cls"),
    "llava_next": ("vision_tower", -2, "cls"),
    "llava_onevision": ("vision_tower", -1, "received"),
    "video_llava": ("image_tower", -2, "cls"),
    "qwen2_vl": ("visual", -1, "received"),
    "qwen2_5_vl": ("visual", 1, "received"),  # the last block that sees the whole image
    "qwen3_vl": ("visual", -1, "received"),
    "smolvlm": ("vision_model", -1, "received"),
    "idefics3": ("vision_model", -1, "received"),
    "paligemma": ("vision_tower", -1, "received"),
    "gemma3": ("vision_tower", -1, "received"),
    "internvl": ("vision_tower", -1, "cls"),
}


@contextmanager
def chosen_scores():
    """Collects the importance that reaches the choice of tokens."""
    stock, seen = features.choose, []

    def record(values, units, scores, *rest):
        seen.append(scores)
        return stock(values, units, scores, *rest)

    features.choose = record
    try:
        yield seen
    finally:
        features.choose = stock


def attention_module(model, name, modality="image"):
    tower, layer, _ = LAYERS[name]
    if name == "video_llava" and modality == "video":
        tower = "video_tower"
    tower = getattr(model.base_model, tower)
    return tower.blocks[layer].attn if hasattr(tower, "blocks") else towers.attention_layers(tower)[layer]


def attended(weights, source):
    """(images, tokens) from maps (images, heads, tokens, tokens)."""
    return weights[:, :, 0].mean(1) if source == "cls" else weights.mean((1, 2))


def squares(raster, side=2):
    """(images, rows x columns) summed over squares of side x side, from (images, n)."""
    rows = int(raster.shape[1] ** 0.5)
    blocks = raster.view(-1, rows // side, side, rows // side, side)
    return blocks.sum((2, 4)).flatten(1)


def run(name, arguments, **settings):
    """What the eager encoder attended to, and the importance the choice was made by: that of a method which asks."""
    settings = {"method": "top_importance", **settings}
    model, processor = pruned(name, "eager", **settings)
    modality = "video" if arguments.get("videos") else "image"
    inputs = processor(**arguments)
    with eager_attention(attention_module(model, name, modality)) as weights, chosen_scores() as scores:
        model(**inputs)
    sdpa, _ = pruned(name, **settings)  # the hooks must not need the eager implementation
    with chosen_scores() as fused:
        sdpa(**inputs)
    for a, b in zip(scores[0], fused[0], strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    return model, inputs, weights, scores[0]


@pytest.mark.parametrize("name", ["llava", "video_llava", "paligemma", "gemma3", "internvl", "smolvlm", "idefics3"])
def test_importance_equals_eager_attention(name):
    _, _, weights, scores = run(name, prompts(name, ROWS))
    expected = attended(weights[0], LAYERS[name][2])
    if LAYERS[name][2] == "cls":
        expected = expected[:, 1:]
    if name in ("internvl", "smolvlm", "idefics3"):
        expected = squares(expected)
    if name == "gemma3":
        expected = squares(expected) / 4
    assert torch.allclose(torch.stack(scores), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("modality", ["image", "video"])
def test_importance_of_merged_patches_is_that_of_the_features(name, modality):
    """Patches that make a token are summed; the order of windows is undone, told apart by the patches themselves."""
    arguments = prompts(name, ROWS) if modality == "image" else video_prompts(name)
    orders = []
    model, inputs, weights, scores = run(name, arguments)
    visual = model.base_model.visual
    handles = [
        visual.patch_embed.register_forward_hook(lambda m, i, o: orders.append(o)),
        visual.blocks[0].register_forward_pre_hook(lambda m, i: orders.append(i[0])),
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    raster, seen = orders
    if name != "qwen3_vl":  # which adds position embeddings before its blocks, and has no windows
        places = torch.cdist(raster, seen).argmin(1)
        assert torch.equal(seen[places], raster)
    else:
        places = torch.arange(len(raster))
    received = torch.cat([w.mean((1, 2))[0] for w in weights])[places]
    expected = received.view(-1, 4).sum(1)
    assert torch.allclose(torch.cat(scores), expected, atol=1e-5)
    if name == "qwen2_5_vl" and modality == "image":
        assert not torch.equal(places, torch.arange(len(places)))  # there was an order to undo


def test_importance_of_anyres_rows_is_laid_out_as_the_features():
    """LLaVA-NeXT: 112 x 140 pixels are 2 x 2 tiles of 4 x 4 patches, of which the first and last row are padding."""
    _, _, weights, scores = run("llava_next", prompts("llava_next", [[0]]))
    maps = attended(weights[0], "cls")[:, 1:].view(5, 4, 4)
    raster = torch.cat([torch.cat([maps[1], maps[2]], 1), torch.cat([maps[3], maps[4]], 1)])[1:7]
    rows = torch.cat([raster, torch.zeros(6, 1)], dim=1)
    assert torch.allclose(scores[0], torch.cat([maps[0].flatten(), rows.flatten()]), atol=1e-5)


def test_importance_of_onevision_tiles_and_frames():
    _, _, weights, scores = run("llava_onevision", prompts("llava_onevision", [[1, 2]]))
    expected = torch.cat([attended(weights[0], "received"), torch.zeros(2, 1)], dim=1)
    assert torch.allclose(torch.stack(scores), expected, atol=1e-5)
    _, _, weights, scores = run("llava_onevision", video_prompts("llava_onevision"))
    frames = squares(attended(weights[0], "received")) / 4  # pooled to half its sides
    expected = torch.cat([frames.view(2, 16), torch.zeros(2, 1)], dim=1)
    assert torch.allclose(torch.stack(scores), expected, atol=1e-5)


def test_importance_of_video_llava_frames_counts_the_cls_token():
    _, _, weights, scores = run("video_llava", video_prompts("video_llava"))
    assert torch.allclose(torch.stack(scores), attended(weights[0], "cls"), atol=1e-5)


def test_received_attention_can_be_asked_of_encoders_with_cls():
    _, _, weights, scores = run("llava", prompts("llava", ROWS), importance="received")
    assert torch.allclose(torch.stack(scores), attended(weights[0], "received")[:, 1:], atol=1e-5)


def test_padded_patches_have_no_importance():
    """Idefics3 without splitting pads images: what is not looked at is worth nothing, and nothing else changes."""
    model, processor = pruned("idefics3", "eager", method="top_importance")
    inputs = dict(processor(**prompts("idefics3", [[0]]), do_image_splitting=False))
    inputs["pixel_attention_mask"] = inputs["pixel_attention_mask"].clone()
    inputs["pixel_attention_mask"][..., 28:, :] = 0  # the lower half of 8 x 8 patches
    with eager_attention(attention_module(model, "idefics3")) as weights, chosen_scores() as scores:
        model(**inputs)
    received = weights[0][0, :, :32].mean((0, 1))
    assert torch.allclose(scores[0][0], squares(received[None])[0], atol=1e-5)
    assert (scores[0][0].view(4, 4)[2:] == 0).all()


@pytest.mark.parametrize(("layer", "index"), [(-1, -1), (-2, -2), (2, 1), ([-3, -2], -2), ([1, 3], 2)])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_importance_comes_from_the_layer_the_features_come_from(layer, index, strategy):
    model, processor = llava("eager", layer=layer, strategy=strategy)
    attach_token_pruner(model, processor, TokenPrunerConfig("top_importance", 5))
    module = towers.attention_layers(model.base_model.vision_tower)[index]
    inputs = processor(**prompts("llava", ROWS))
    with eager_attention(module) as weights, chosen_scores() as scores:
        model(**inputs)
    expected = attended(weights[0], "cls")
    assert torch.allclose(torch.stack(scores[0]), expected if strategy == "full" else expected[:, 1:], atol=1e-5)
    assert model.base_model.token_pruner.last[0].num_tokens == (17 if strategy == "full" else 16)


@pytest.mark.parametrize(("tower", "offers"), [("clip", "cls"), ("dinov2", "cls"), ("siglip", "received")])
def test_llava_works_on_other_encoders(tower, offers):
    """A tower without [CLS] gives all its tokens under "full" and loses a patch under "default", as in stock."""
    for strategy in ("full", "default"):
        model, processor = llava("eager", layer=-1, strategy=strategy, tower=tower)
        attach_token_pruner(model, processor, TokenPrunerConfig("top_importance", 5))
        module = towers.attention_layers(model.base_model.vision_tower)[-1]
        with eager_attention(module) as weights, chosen_scores() as scores:
            model(**processor(**prompts("llava", ROWS)))
        expected = attended(weights[0], offers)[:, int(strategy == "default") :]
        assert torch.allclose(torch.stack(scores[0]), expected, atol=1e-5)


def test_an_encoder_of_unknown_make_falls_back_to_distinct_tokens(monkeypatch, caplog):
    monkeypatch.setattr(towers, "attention_layers", lambda tower: [])
    monkeypatch.setattr(logging.getLogger("hf_efficient"), "propagate", True)
    model, processor = pruned("llava", method="top_importance")
    with chosen_scores() as scores:
        model(**processor(**prompts("llava", ROWS)))
    assert scores == [None]
    assert [r.message for r in caplog.records] == [
        "CLIPVisionModel offers no attention to take importance from: its layers do not call attention through the "
        "interface of transformers. Importance is distinctiveness instead (importance='distinct')."
    ]
    with pytest.raises(ValueError, match="interface of transformers; it offers: distinct, norm"):
        attach_token_pruner(model, processor, TokenPrunerConfig(importance="cls"))


@pytest.mark.parametrize("importance", ["distinct", "norm"])
@pytest.mark.parametrize("name", FAMILIES)
def test_importance_from_features_asks_for_no_attention(name, importance):
    model, processor = pruned(name, importance=importance)
    with chosen_scores() as scores:
        model(**processor(**prompts(name, ROWS)))
    assert scores == [None]


@pytest.mark.parametrize("name", FAMILIES)
def test_hooks_do_not_outlive_a_call(name):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model, processor = pruned(name, method="top_importance")
    inputs = processor(**prompts(name, ROWS))
    model(**inputs)  # at its first call, transformers installs hooks of its own, which stay
    before = hooks()
    model(**inputs)
    assert hooks() == before
    pixels = inputs["pixel_values" if "pixel_values" in inputs else "pixel_values_images"]
    pixels.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        model(**inputs)
    assert hooks() == before
