"""What an error keeps from being looked at is no verdict: it is looked at again when a pruner is attached again."""

import importlib

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, load_token_pruned, prune_inputs
from hf_efficient.representation.vlm import proof
from hf_efficient.representation.vlm.proof import videos as of_videos
from tests.zoo import shown, stock
from tests.zoo.clips import shown_clips
from tests.zoo.sabotage import sabotaged

NAME = "qwen3_5"
CONFIG = TokenPrunerConfig(budget=3, importance="distinct")
NO_MEMORY = torch.OutOfMemoryError("none is left")


@pytest.fixture(autouse=True)
def nothing_is_proven(monkeypatch):
    monkeypatch.setattr(proof, "_PROVEN", {})


def failing(errors):
    """A pair whose function for videos raises these errors, one a call, until none is left."""

    def features(self, cls, *args, **kwargs):
        if errors:
            raise errors.pop()
        return cls.get_video_features(self, *args, **kwargs)

    return sabotaged(NAME, get_video_features=features)


def test_videos_that_there_was_no_memory_for_are_tried_when_attached_again():
    model, processor = failing([NO_MEMORY])
    attach_token_pruner(model, processor, CONFIG)
    assert model(**shown(processor, [[0]])).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"video of .* OutOfMemoryError: none is left"):
        shown_clips(processor, [[0]])
    attach_token_pruner(model, processor, CONFIG)
    assert model(**shown_clips(processor, [[0]])).logits.isfinite().all()


def test_inputs_with_videos_are_pruned_once_there_is_memory():
    model, processor = failing(errors := [NO_MEMORY])
    inputs = shown_clips(processor, [[0]])
    prune_inputs(model, shown(processor, [[0]]), CONFIG, processor)
    assert not errors
    assert "mm_encoder_outputs" in prune_inputs(model, inputs, CONFIG, processor)


def test_no_memory_for_a_picture_beside_a_clip_is_no_verdict(monkeypatch):
    true, calls = of_videos.check_together, []

    def check(*args):
        calls.append(1)
        if len(calls) == 1:
            with of_videos.calling("together"):
                raise NO_MEMORY
        true(*args)

    monkeypatch.setattr(of_videos, "check_together", check)
    model, processor = attach_token_pruner(*stock(NAME), CONFIG)
    with pytest.raises(ValueError, match=r"in one call of .* OutOfMemoryError"):
        model(**shown_clips(processor, [[0]], pictures=True))
    attach_token_pruner(model, processor, CONFIG)
    assert model(**shown_clips(processor, [[0]], pictures=True)).logits.isfinite().all()


def test_no_memory_to_look_for_the_encoder_is_no_verdict(monkeypatch):
    of_pictures = importlib.import_module("hf_efficient.representation.vlm.proof.prove")  # a function hides it
    true, errors = of_pictures.find_encoder, [NO_MEMORY]

    def find(*args):
        if errors:
            raise errors.pop()
        return true(*args)

    monkeypatch.setattr(of_pictures, "find_encoder", find)
    received = TokenPrunerConfig(budget=3, importance="received")
    pair = stock(NAME)
    with pytest.raises(ValueError, match="OutOfMemoryError"):
        attach_token_pruner(*pair, received)
    model, processor = attach_token_pruner(*pair, received)
    assert model(**shown(processor, [[0]])).logits.isfinite().all()


@pytest.mark.parametrize("error", [TypeError("it takes no such thing"), None])
def test_what_is_found_of_the_pair_is_looked_at_once(error, monkeypatch):
    true, calls = proof.prove_videos, []

    def counting(*args):
        calls.append(1)
        true(*args)

    monkeypatch.setattr(proof, "prove_videos", counting)
    model, processor = failing([error] * (error is not None))
    attach_token_pruner(model, processor, CONFIG)
    attach_token_pruner(model, processor, CONFIG)
    assert len(calls) == 1


def test_an_error_of_the_proof_itself_is_raised(monkeypatch):
    def layout(looks):
        raise TypeError("a mistake")

    monkeypatch.setattr(of_videos, "clip_layout", layout)
    with pytest.raises(TypeError, match="a mistake"):
        attach_token_pruner(*stock(NAME), CONFIG)


def test_saving_and_loading_leave_what_was_proven(tmp_path):
    model, processor = attach_token_pruner(*stock(NAME), CONFIG)
    stock_processor = stock(NAME)[1]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    load_token_pruned(tmp_path)
    assert len(proof._PROVEN) == 1
    inputs = shown_clips(stock_processor, [[0]])
    loaded = type(stock(NAME)[0]).from_pretrained(tmp_path)
    assert "mm_encoder_outputs" in prune_inputs(loaded, inputs, CONFIG)
