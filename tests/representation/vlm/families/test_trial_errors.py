"""An error while an encoder is tried says nothing of its kind, and trials of several threads go on side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.vlm.families import trial
from tests.representation.vlm.families.encoders import ENCODERS, LAYER
from tests.tiny import stock


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_TRIED", {})


def offers(encoder: Any, run: Any) -> Any:
    return trial.offers(encoder, LAYER, run)


def test_what_kept_an_encoder_from_being_tried_is_no_verdict() -> None:
    made, broken = ENCODERS["clip"], [True]

    def run(encoder: Any) -> Any:
        if broken:
            raise torch.OutOfMemoryError("no room for 2 GiB")
        return made.run(encoder)

    encoder = made.make()
    refused = ((), "trying it failed with OutOfMemoryError: no room for 2 GiB")
    assert offers(encoder, run) == refused
    broken.clear()
    assert offers(encoder, run) == refused  # importance stays what it is until a pruner is attached again
    assert offers(made.make(), run) == (("cls", "received"), None)  # and nothing is said of the kind
    trial.forget(encoder)
    assert offers(encoder, run) == (("cls", "received"), None)


def test_attaching_again_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = stock("llava")
    tower = type(model.base_model.vision_tower)
    config = TokenPrunerConfig("top_importance", 4, importance="cls")
    with monkeypatch.context() as patch:
        patch.setattr(tower, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError("full")))
        with pytest.raises(ValueError, match="trying it failed with MemoryError: full"):
            attach_token_pruner(model, processor, config)
    attach_token_pruner(model, processor, config)


def test_threads_do_not_wait_for_each_others_trials() -> None:
    made, together = ENCODERS["clip"], threading.Barrier(2, timeout=60)

    def run(encoder: Any) -> Any:
        together.wait()  # broken, and so an error, unless both run at once
        return made.run(encoder)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda encoder: offers(encoder, run), [made.make(), made.make()]))
    assert found == [(("cls", "received"), None)] * 2
