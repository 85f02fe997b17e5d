"""Trainings whose number of active weights falls, through an adapter's files in the middle of the fall."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from hf_efficient import train_sparsely
from tests.sparsity.loops import batches, classifier, run, state_of, trainable, weights_of


@pytest.mark.parametrize("distribution", ["erk", "uniform", "global"])
@pytest.mark.parametrize(
    "settings",
    [
        {"topology": "bidst", "initial_sparsity": 0.0},
        {"topology": "bidst", "initial_sparsity": 0.4, "init": "snip", "target": "delta"},
        {"topology": "rigl", "initial_sparsity": 0.0, "grow_from": "start"},
        {"topology": "gmp"},
        {"topology": "gmp", "target": "delta"},
    ],
    ids=str,
)
def test_a_saved_fall_goes_on_bit_for_bit(settings: dict[str, Any], distribution: str, tmp_path: Path) -> None:
    """The count in the files is not the budget, to which it falls."""
    data, steps = batches(24), 24
    model = classifier(distribution=distribution, train_others=False, **settings)
    base = copy.deepcopy(model).unload()
    optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
    train_sparsely(model, optimizer, total_steps=steps)
    run(model, optimizer, data[:9])
    model.save_pretrained(str(tmp_path))
    state, halfway = copy.deepcopy(optimizer.state_dict()), sum(len(w.indices) for w in weights_of(model))
    run(model, optimizer, data[9:])

    again = PeftModel.from_pretrained(base, str(tmp_path), is_trainable=True)
    optimizer = torch.optim.AdamW(trainable(again), lr=0.01)
    optimizer.load_state_dict(state)
    train_sparsely(again, optimizer, total_steps=steps)
    run(again, optimizer, data[9:])
    final = sum(len(w.indices) for w in weights_of(again))
    assert final == sum(w.budget for w in weights_of(model)) < halfway
    expected = state_of(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_of(again).items())
