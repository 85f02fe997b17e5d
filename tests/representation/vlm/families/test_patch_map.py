"""Which tokens make a feature, line breaks, tiles and importance: found out, they are what the files say."""

import threading
from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.vlm.families import family_of, generic, patch_map, towers
from hf_efficient.representation.vlm.families.encoder import Encoder
from hf_efficient.representation.vlm.families.family import VisualInputs, encoded
from hf_efficient.representation.vlm.families.patch_map import Unclear, map_of
from hf_efficient.representation.vlm.families.raster import Raster
from hf_efficient.representation.vlm.prompt import images_of
from hf_efficient.representation.vlm.proof import prove
from tests.representation.vlm.families.encoders import eager_attention
from tests.tiny import FAMILIES, ROWS, prompts, video_prompts
from tests.tiny import stock as tiny_stock
from tests.zoo import CORE, shown, stock

WITHOUT = {"aria": "makes several of them", "gemma4_unified": "do not call attention through the interface"}


def importance(family, images, source, units):
    with family.attention(images, source) as watch, torch.no_grad():
        encoded(images)
    return family.scores(images, watch.result(), units)


def same(one, other):
    """Whether two layouts of a unit are equal; groups that tell nothing apart are none."""
    one, other = (None if x is None or not bool(x.any()) else x for x in (one, other))
    return one is other or (one is not None and other is not None and torch.equal(one, other))


@pytest.mark.parametrize("rows", [ROWS, [[0]], [[2], [1]]])
@pytest.mark.parametrize("name", FAMILIES)
def test_types_with_a_file_have_the_breaks_tiles_and_importance_that_it_says(name, rows):
    model, processor = tiny_stock(name)
    written, found = family_of(model), prove(model, processor)
    (images,) = images_of(model.base_model, processor(**prompts(name, rows)))
    units, again = written.units(images), found.units(images)
    assert [unit.n for unit in again] == [unit.n for unit in units]
    for one, other in zip(units, again, strict=True):
        assert same(one.newline, other.newline)
        assert same(one.row, other.row) or one.newline is None
        assert same(one.groups, other.groups)
        assert one.grid == other.grid
    assert found.grouped == tuple(g for g in written.grouped if g == "min_group_share" and not written.mrope)
    source = written.source(model.base_model, "image", "auto")
    assert found.source(model.base_model, "image", "auto") == source
    assert isinstance(found.encoder, Encoder)
    assert found.encoder.offers(model.base_model)[1] is None
    scores = [importance(family, images, source, units) for family in (written, found)]
    for one, other in zip(*scores, strict=True):
        assert torch.allclose(one / one.sum(), other / other.sum(), rtol=1e-5, atol=1e-8)


def test_importance_of_videos_is_that_of_the_file():
    model, processor = tiny_stock("qwen2_5_vl")
    written, found = family_of(model), prove(model, processor)
    (images,) = images_of(model.base_model, processor(**video_prompts("qwen2_5_vl")))
    units = written.units(images)
    scores = [importance(family, images, "received", units) for family in (written, found)]
    for one, other in zip(*scores, strict=True):
        assert torch.allclose(one / one.sum(), other / other.sum(), rtol=1e-5, atol=1e-8)


def jacobian(images, layer, behind=()):
    """(N, M) bool: of every feature, each by itself, the tokens of a layer that its gradient reaches."""
    kept, hooks = [], []
    for name in (layer, *behind):
        module = images.base.get_submodule(name)

        def cut(module, args, output, first=name == layer):
            leaf = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_(first)
            kept.extend([leaf] if first else [])
            return (leaf, *output[1:]) if isinstance(output, tuple) else leaf

        hooks.append(module.register_forward_hook(cut))
    features = torch.cat([x.reshape(-1, x.shape[-1]) for x in encoded(images).pooler_output])
    for hook in hooks:
        hook.remove()
    rows = []
    for feature in features:
        found = torch.autograd.grad(feature.square().sum(), kept, retain_graph=True, allow_unused=True)
        reached = [torch.zeros_like(x) if g is None else g for g, x in zip(found, kept, strict=True)]
        rows.append(torch.cat([(g != 0).any(-1).flatten() for g in reached]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", [n for n in CORE if n != "gemma4"])
def test_the_map_is_what_gradients_of_single_features_say(name):
    model, processor = stock(name)
    encoder = prove(model, processor).encoder
    assert isinstance(encoder, Encoder)
    (images,) = images_of(model.base_model, shown(processor, [[2]]))
    expected = jacobian(images, encoder.layer, encoder.behind)
    found = map_of(images, encoder.layer, encoder.behind)
    assert found.count == len(expected)
    assert torch.equal(found.feature[None] == torch.arange(found.count)[:, None], expected)


def squares(values, height, width, side):
    """Sums (height / side * width / side,) over squares of a raster."""
    return values.view(height // side, side, width // side, side).sum((1, 3)).flatten()


@pytest.mark.parametrize(("name", "layer", "side"), [("mistral3", "attention", 2), ("pixtral", "attention", 1)])
def test_importance_is_the_attention_that_the_stock_encoder_pays_in_eager_mode(name, layer, side):
    model, processor = stock(name)
    config = TokenPrunerConfig(budget=5, method="top_importance", importance="received")
    attach_token_pruner(model, processor, config)
    inputs = shown(processor, [[1]])
    model(**inputs)
    (kept,) = model.base_model.token_pruner.last
    model, _ = stock(name)
    model.set_attn_implementation("eager")
    (images,) = images_of(model.base_model, inputs)
    with eager_attention(model.base_model.vision_tower.transformer.layers[-1].attention) as weights, torch.no_grad():
        encoded(images)
    height, width = inputs["image_sizes"][0].tolist()
    truth = squares(weights[0].mean((0, 1, 2)), height // 14, width // 14, side)
    assert kept.indices.tolist() == sorted(truth.topk(5).indices.tolist())


def test_a_connector_that_moves_tokens_shows_in_map_raster_and_importance():
    model, processor = stock("vipllava")
    base, moved = model.base_model, torch.randperm(16, generator=torch.Generator().manual_seed(3))
    (images,) = images_of(base, shown(processor, [[0]]))
    straight = prove(model, processor)
    assert isinstance(straight.encoder, Encoder)
    assert straight.encoder.raster == Raster("pixel_values", 14)
    units = straight.units(images)
    (expected,) = importance(straight, images, "received", units)
    stock_class = type(base.multi_modal_projector)
    change = {"forward": lambda self, x: stock_class.forward(self, x)[:, moved]}
    base.multi_modal_projector.__class__ = type("Moved", (stock_class,), change)
    found = prove(model, processor)
    assert torch.equal(found.map(images).feature[1:][moved], torch.arange(16))
    assert isinstance(found.encoder, Encoder)
    assert found.encoder.raster is None
    (scores,) = importance(found, images, "received", units)
    assert torch.equal(scores, expected[moved])


def test_a_connector_that_sorts_tokens_by_their_values_has_no_map():
    model, processor = stock("vipllava")
    projector = model.base_model.multi_modal_projector
    stock_class = type(projector)

    def by_length(self, x):
        features = stock_class.forward(self, x)
        order = features.norm(dim=-1).argsort(dim=-1)
        return features.gather(1, order[..., None].expand_as(features))

    projector.__class__ = type("Sorted", (stock_class,), {"forward": by_length})
    assert prove(model, processor).encoder == "of which tokens they are made depends on more than shapes"


def test_line_breaks_among_the_features_are_no_candidates_and_go_with_their_rows():
    model, processor = stock("llava_next_video")
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=20, min_group_share=0.5))
    model(**shown(processor, ROWS))
    pruner = model.base_model.token_pruner
    (images,) = images_of(model.base_model, shown(stock("llava_next_video")[1], ROWS))
    for kept, unit in zip(pruner.last, pruner.family.units(images), strict=True):
        assert len(kept.indices) == 20
        breaks = unit.newline[kept.indices]
        rows = set(unit.row[kept.indices[~breaks]].tolist()) - {-1}
        assert rows <= set(unit.row[kept.indices[breaks]].tolist())
        assert len(unit.groups[kept.indices[~breaks]].unique()) > 1


@pytest.mark.parametrize("name", WITHOUT)
def test_importance_that_cannot_be_had_is_refused_and_said_once_where_it_is_not_asked_for(name, caplog):
    with pytest.raises(ValueError, match=f"'received' cannot be had.*{WITHOUT[name]}"):
        attach_token_pruner(*stock(name), TokenPrunerConfig(importance="received"))
    towers.logger.warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        model, processor = attach_token_pruner(*stock(name), TokenPrunerConfig(budget=3, method="top_importance"))
        model(**shown(processor, ROWS))
        model(**shown(processor, [[1]]))
    assert [WITHOUT[name] in record.message for record in caplog.records].count(True) == 1
    assert all(len(unit.indices) == 3 for unit in model.base_model.token_pruner.last)


def test_features_that_come_from_elsewhere_are_no_line_breaks():
    model, processor = stock("llava_next_video")
    base, cls = model.base_model, type(model.base_model)

    def features(self, pixel_values, *args, **kwargs):
        output = cls.get_image_features(self, pixel_values, *args, **kwargs)
        newline = self.image_newline
        told = [torch.where((x == newline).all(-1, keepdim=True), pixel_values.mean(), x) for x in output.pooler_output]
        output.pooler_output = told
        return output

    vars(features)["__wrapped__"] = cls.get_image_features
    base.__class__ = type(cls.__name__, (cls,), {"get_image_features": features})
    found = prove(model, processor)
    assert found.encoder == "some features come from elsewhere"
    (images,) = images_of(base, shown(processor, [[0]]))
    assert all(unit.newline is None for unit in found.units(images))


def test_an_encoder_that_cannot_be_looked_for_is_left_alone(monkeypatch):
    def broken(*_):
        raise MemoryError("none left")

    monkeypatch.setattr("hf_efficient.representation.vlm.proof.encoder.called", broken)
    assert prove(*stock("aya_vision")).encoder == "looking for it failed with MemoryError: none left"


def test_a_call_whose_map_is_unclear_falls_back_or_is_refused(monkeypatch, caplog):
    def unclear(*_):
        raise Unclear("of the moon")

    monkeypatch.setattr(generic, "map_of", unclear)
    towers.logger.warning_once.cache_clear()
    model, processor = attach_token_pruner(*stock("aya_vision"), TokenPrunerConfig(budget=3, method="top_importance"))
    monkeypatch.setattr(model.base_model.token_pruner.family, "maps", {})
    with caplog.at_level("WARNING"):
        model(**shown(processor, ROWS))
    assert any("of the moon" in record.message for record in caplog.records)
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=3, importance="received"))
    with pytest.raises(ValueError, match="of the moon"):
        model(**shown(processor, ROWS))


def test_the_model_is_left_as_it_was_and_pixels_may_come_from_inference_mode():
    model, processor = stock("mistral3")
    encoder = prove(model, processor).encoder
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, Encoder)
    model.train()
    state, attention = torch.get_rng_state(), model.base_model.get_submodule(encoder.layer)
    before = attention.config, attention.config._attn_implementation, dict(attention._forward_hooks)
    (images,) = images_of(model.base_model, shown(processor, [[0]]))
    expected = map_of(images, encoder.layer)
    with torch.inference_mode():
        own = VisualInputs(images.base, "image", {**images.arguments, "pixel_values": images.pixels.clone()})
        found = map_of(own, encoder.layer)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found.feature, expected.feature)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert (attention.config, attention.config._attn_implementation, dict(attention._forward_hooks)) == before
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_threads_that_meet_new_shapes_at_once_choose_as_alone():
    config = TokenPrunerConfig(budget=3, importance="received")
    model, processor = attach_token_pruner(*stock("mistral3"), config)
    inputs = [shown(processor, [[i]]) for i in range(3)]
    expected = [model(**one).logits for one in inputs]
    model.base_model.token_pruner.family.maps.clear()
    found: list[Any] = [None] * 6

    def work(i):
        found[i] = model(**inputs[i % 3]).logits

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, expected[i % 3]) for i, one in enumerate(found))


def test_what_failed_once_is_tried_again(monkeypatch):
    model, processor = stock("aya_vision")
    found = prove(model, processor)
    (images,) = images_of(model.base_model, shown(processor, [[0]]))

    def broken(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(patch_map, "owners", broken)
        with pytest.raises(Unclear, match="MemoryError"):
            found.map(images)
    assert found.map(images).count == len(found.map(images).images)


def test_a_map_in_sixteen_bits_is_that_in_thirty_two():
    model, processor = stock("aya_vision")
    encoder = prove(model, processor).encoder
    assert isinstance(encoder, Encoder)
    (images,) = images_of(model.base_model, shown(processor, [[0]]))
    expected = map_of(images, encoder.layer)
    model.to(torch.bfloat16)
    (images,) = images_of(model.base_model, shown(processor, [[0]]).to(torch.bfloat16))
    found = patch_map.map_of(images, encoder.layer)
    assert torch.equal(found.feature, expected.feature)
    assert torch.equal(found.image, expected.image)
