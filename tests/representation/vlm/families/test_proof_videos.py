"""Pairs whose videos must be refused, each by one thing gone wrong, while their pictures are pruned on."""

import functools
import logging
import re
from typing import Any

import pytest
import torch
import transformers as hf

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.vlm import proof
from hf_efficient.representation.vlm.families import towers
from hf_efficient.representation.vlm.families.generic import Generic
from hf_efficient.representation.vlm.proof import RULES, prove, prove_videos
from tests.zoo import shown, stock
from tests.zoo.clips import shown_clips
from tests.zoo.sabotage import sabotaged

NAME = "qwen3_5"  # one of the fastest


@functools.cache
def of_pictures():
    return prove(*stock(NAME))


def looked_at(pair, first_position=None):
    """The family of a pair whose pictures are believed, after its videos were looked at."""
    pictures = of_pictures()
    layout, encoder = pictures.layouts["image"], pictures.encoder
    family = Generic(pictures.processor, pictures.ids["image"], layout, first_position, encoder)
    model, processor = pair
    prove_videos(model, processor, family)
    return family


def refused(pair, first_position=None):
    """The rules that a refusal of videos may be about, by its words; the pictures are as they were."""
    family = looked_at(pair, first_position)
    assert family.modalities == ("image",)
    return [rule for rule, words in RULES.items() if words in family.whole]


def features(change):
    """A function for videos whose pieces of features are changed."""

    def changed(self, cls, *args, **kwargs):
        output = cls.get_video_features(self, *args, **kwargs)
        output.pooler_output = change(output.pooler_output)
        return output

    return changed


def merged(change, only=None):
    """A forward that changes the features of videos on their way, or `only` those of "pixels" or "encoded"."""

    def forward(self, cls, *args, **kwargs):
        given, how = kwargs.get("mm_encoder_outputs") or {}, "encoded"
        if kwargs.get("pixel_values_videos") is not None:
            pixels, how = kwargs.pop("pixel_values_videos"), "pixels"
            given = {"video": self.get_video_features(pixels, kwargs["video_grid_thw"], return_dict=True)}
        if "video" in given and only in (None, how):
            one = type(given["video"])(**given["video"])
            one.pooler_output = change(one)
            given = {**given, "video": one}
        return cls.forward(self, *args, **{**kwargs, "mm_encoder_outputs": given or None})

    return forward


def test_videos_of_the_pair_are_proven_as_it_is():
    assert looked_at(stock(NAME)).modalities == ("image", "video")
    same = sabotaged(NAME, get_video_features=features(lambda x: x), forward=merged(lambda one: one.pooler_output))
    assert looked_at(same).modalities == ("image", "video")


@pytest.mark.parametrize(
    ("only", "change", "rule"),
    [
        (None, lambda one: [2 * x for x in one.pooler_output], "order"),
        (None, lambda one: [x.flip(0) for x in one.pooler_output], "order"),
        (None, lambda one: [x + one.last_hidden_state.square().mean() for x in one.pooler_output], "order"),
        ("encoded", lambda one: [x + 1 for x in one.pooler_output], "same bits"),
    ],
)
def test_features_that_are_changed_on_their_way_are_refused(only, change, rule):
    assert refused(sabotaged(NAME, forward=merged(change, only))) == [rule]


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (lambda pieces: pieces[::-1], ["layout"]),  # clips in another order than in the prompt, of other sizes
        (lambda pieces: [x.flip(0) if len(pieces) > 1 else x for x in pieces], ["batch"]),
        (lambda pieces: [x - pieces[0].mean() * (len(pieces) > 1) for x in pieces], ["batch"]),
        (lambda pieces: [x[1:] for x in pieces], ["runs"]),  # fewer than placeholders: the stock model raises
        (lambda pieces: None, ["runs"]),
    ],
)
def test_features_that_depend_on_what_else_is_shown_or_are_too_few_are_refused(change, rules):
    assert refused(sabotaged(NAME, get_video_features=features(change))) == rules


def test_a_way_around_the_language_model_is_refused():
    def forward(self, cls, *args, **kwargs):
        given: Any = kwargs.get("mm_encoder_outputs")
        if kwargs.get("pixel_values_videos") is not None:
            pixels = kwargs.pop("pixel_values_videos")
            given = {"video": self.get_video_features(pixels, kwargs["video_grid_thw"], return_dict=True)}
            kwargs["mm_encoder_outputs"] = given
        output = cls.forward(self, *args, **kwargs)
        output["last_hidden_state"] = output["last_hidden_state"] + given["video"].last_hidden_state.mean()
        return output

    assert refused(sabotaged(NAME, forward=forward)) == ["one way"]


def test_positions_that_are_not_those_of_get_rope_index_are_refused():
    def forward(self, cls, *args, **kwargs):
        kwargs["position_ids"] = torch.arange(kwargs["input_ids"].shape[1]).expand(3, *kwargs["input_ids"].shape)
        return cls.forward(self, *args, **kwargs)

    assert refused(sabotaged(NAME, forward=forward)) == ["positions"]


def test_runs_that_no_argument_tells_are_refused():
    model, processor = stock("lfm3_vl")  # it counts positions along one axis
    cls = type(processor)

    def uneven(self, *args, **kwargs):  # a word behind the first token of every frame
        text = cls.replace_video_token(self, *args, **kwargs)
        start = self.vision_start_token + self.video_token
        return text.replace(start, start + " w5 ")

    processor.__class__ = type("Lfm3VlProcessor", (cls,), {"replace_video_token": uneven})
    assert refused((model, processor), 0) == ["layout"]


def test_a_processor_that_counts_otherwise_is_refused():
    model, processor = stock(NAME)
    processor.video_processor.merge_size = 1
    assert refused((model, processor)) in (["runs"], ["counts"])


def test_a_pair_without_what_videos_need_is_refused():
    model, processor = stock(NAME)
    bare = {"replace_video_token": hf.ProcessorMixin.replace_video_token}
    processor.__class__ = type("Bare", (type(processor),), bare)
    assert refused((model, processor)) == ["placeholders"]
    model, processor = stock(NAME)
    processor.video_processor = None
    assert refused((model, processor)) == ["processor"]
    assert refused(stock("aya_vision")) == ["features"]


def test_a_refusal_leaves_pictures_pruned_and_says_why_and_what_to_do(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})
    pair = sabotaged(NAME, forward=merged(lambda one: [2 * x for x in one.pooler_output]))
    model, processor = attach_token_pruner(*pair, TokenPrunerConfig(budget=3, importance="distinct"))
    assert model(**shown(processor, [[0]])).logits.isfinite().all()
    assert [len(unit.indices) for unit in model.base_model.token_pruner.last] == [3]
    words = r"video of .* would have to stay whole. .*; but they are 2 times as large .* Show frames as images, or det"
    with pytest.raises(ValueError, match=words):
        shown_clips(processor, [[0]])
    with pytest.raises(ValueError, match=words):
        model(**shown_clips(stock(NAME)[1], [[0]]))


def test_a_picture_beside_a_clip_is_refused_where_they_do_not_find_their_features(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})

    def forward(self, cls, *args, **kwargs):
        given = kwargs.get("mm_encoder_outputs") or {}
        if len(given) == 2 or (kwargs.get("pixel_values") is not None and kwargs.get("video_grid_thw") is not None):
            raise TypeError("one of the two")
        return cls.forward(self, *args, **kwargs)

    pair = sabotaged(NAME, forward=forward)
    model, processor = attach_token_pruner(*pair, TokenPrunerConfig(budget=3, importance="distinct"))
    assert model(**shown_clips(processor, [[0]])).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"Images and videos in one call of .* raises TypeError: one of the two"):
        model(**shown_clips(processor, [[0]], pictures=True))


def test_a_proof_that_breaks_down_leaves_pictures_proven():
    model, processor = stock(NAME)
    processor.video_processor.patch_size = None
    family = looked_at((model, processor))
    assert family.modalities == ("image",)
    assert family.whole


def test_a_mask_over_features_of_videos_is_taken_out_and_refused_where_it_leaves_any_out():
    pair = attach_token_pruner(*stock("video_llama_3"), TokenPrunerConfig(budget=3, importance="distinct"))
    model, processor = pair
    inputs = shown_clips(processor, [[0]])
    assert model(**inputs).logits.isfinite().all()
    inputs["video_compression_mask"][5] = False
    with pytest.raises(ValueError, match=r"leaves out 1 of .* use_token_compression=False"):
        model(**inputs)
    with pytest.raises(ValueError, match=r"leaves out 1 of .* use_token_compression=False"):
        model.generate(**inputs)


def told(caplog, monkeypatch, **settings):
    """What attaching says, and the pair."""
    monkeypatch.setattr(logging.getLogger("hf_efficient"), "propagate", True)
    type(towers.logger).warning_once.cache_clear()
    caplog.clear()
    with caplog.at_level("WARNING"):
        pair = attach_token_pruner(*stock(NAME), TokenPrunerConfig(budget=3, **settings))
    return own(caplog), *pair


def own(caplog):
    return [record.message for record in caplog.records if record.name.startswith("hf_efficient")]


def test_attention_of_videos_is_refused_and_attaching_says_so(caplog, monkeypatch):
    said, model, processor = told(caplog, monkeypatch, importance="received")
    words = "'received' cannot be had from .* \\(videos\\): .* for pictures alone; it offers: distinct, norm"
    assert len(said) == 1
    assert re.match(f"Pictures are pruned, videos will be refused: importance={words}", said[0])
    assert model(**shown(processor, [[0]])).logits.isfinite().all()
    with pytest.raises(ValueError, match=words):
        model(**shown_clips(processor, [[0]]))


def test_attaching_says_that_importance_of_videos_is_distinctiveness_where_that_of_pictures_is_not(caplog, monkeypatch):
    said, model, processor = told(caplog, monkeypatch, method="vispruner")
    assert len(said) == 1
    assert re.match(r".* \(videos\) offers no attention .* for pictures alone\. Importance is distinctiveness", said[0])
    with caplog.at_level("WARNING"):
        assert model(**shown_clips(processor, [[0]])).logits.isfinite().all()
    assert len(own(caplog)) == 1
    assert told(caplog, monkeypatch, method="id_pruner")[0] == []  # asks for nothing else
