"""The state that a checkpoint brings back: what no training has left is refused by name, and never computed with."""

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model

from hf_efficient import BiDSTConfig, train_sparsely
from hf_efficient.methods import SPARSITY, settings_of
from tests.sparsity.models import IDS, llama

CONFIG: dict[str, Any] = {
    "sparsity": 0.8, "target_modules": ["q_proj", "v_proj"], "update_interval": 4, "score_interval": 2,
    "init": "random", "train_others": False,
}  # fmt: skip


def training(**settings: Any) -> tuple[Any, Any]:
    merged = {**CONFIG, **settings}
    model = get_peft_model(llama(), BiDSTConfig(**settings_of(SPARSITY, merged.get("topology", "bidst"), **merged)))
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def steps(model: Any, optimizer: Any, count: int) -> None:
    for _ in range(count):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    """Model and optimizer after six steps, of which two moved weights."""
    model, optimizer = training()
    train_sparsely(model.train(), optimizer, 40)
    steps(model, optimizer, 6)
    return {"model": copy.deepcopy(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}


def resumed(checkpoint: dict[str, Any], state: Any, **settings: Any) -> Any:
    model, optimizer = training(**settings)
    model.load_state_dict(checkpoint["model"])
    groups = copy.deepcopy(checkpoint["optimizer"])
    groups["param_groups"][0]["sparsity"] = state
    optimizer.load_state_dict(groups)
    engine = train_sparsely(model.train(), optimizer, 40)
    steps(model, optimizer, 6)
    return engine


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def memory(name: str, change: Any) -> Any:
    return lambda s: s["memory"][LAYER].update({name: change(s["memory"][LAYER][name])})


STATES: dict[str, Any] = {
    "a list": lambda s: [1, 2],
    "nothing": lambda s: None,
    "text": lambda s: "state",
    "no steps": lambda s: s.pop("steps"),
    "steps as text": lambda s: s.update(steps="6"),
    "steps as a tensor": lambda s: s.update(steps=torch.tensor(6)),
    "negative steps": lambda s: s.update(steps=-1),
    "steps without end": lambda s: s.update(steps=10**30),
    "no updates": lambda s: s.pop("updates"),
    "updates as a list": lambda s: s.update(updates=[1]),
    "moved beyond the weights": lambda s: s.update(moved=10**9),
    "no memory": lambda s: s.pop("memory"),
    "memory as a list": lambda s: s.update(memory=[]),
    "memory of nothing": lambda s: s.update(memory={}),
    "a layer less": lambda s: s["memory"].pop(LAYER),
    "a layer more": lambda s: s["memory"].update(other={}),
    "a layer's memory as a list": lambda s: s["memory"].update({LAYER: [1]}),
    "a layer's memory as numbers": lambda s: s["memory"].update({LAYER: {"candidates": 3}}),
    "a layer's memory is empty": lambda s: s["memory"].update({LAYER: {}}),
    "no ever": lambda s: s.pop("ever"),
    "ever as a number": lambda s: s["ever"].update({LAYER: 7}),
    "ever too short": lambda s: s["ever"].update({LAYER: s["ever"][LAYER][:-1]}),
    "ever as floats": lambda s: s["ever"].update({LAYER: s["ever"][LAYER].float()}),
    "candidates beyond": memory("candidates", lambda t: t + 2**40),
    "negative candidates": memory("candidates", lambda t: -t - 1),
    "candidates twice": memory("candidates", lambda t: t * 0),
    "candidates as floats": memory("candidates", lambda t: t.double()),
    "candidates in two dimensions": memory("candidates", lambda t: t[None]),
    "candidates too few": memory("candidates", lambda t: t[:-1]),
    "dormant too few": memory("dormant", lambda t: t[:-1]),
    "dormant as whole numbers": memory("dormant", lambda t: t.int()),
    "square too many": memory("square", lambda t: torch.cat([t, t])),
    "square as text": memory("square", lambda t: "x"),
    "indices as text": lambda s: s.update(indices="x"),
    "other indices": lambda s: s["indices"].update({LAYER: "x"}),
    "reads too few": memory("reads", lambda t: t[:3]),
    "levels too few": memory("levels", lambda t: t[:3]),
    "no levels": lambda s: s["memory"][LAYER].pop("levels"),
    "no reads": lambda s: s["memory"][LAYER].pop("reads"),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_that_no_training_left_is_refused(checkpoint: dict[str, Any], change: Any) -> None:
    state = copy.deepcopy(checkpoint["optimizer"]["param_groups"][0]["sparsity"])
    result = change(state)
    state = result if change in (STATES["a list"], STATES["nothing"], STATES["text"]) else state
    with pytest.raises(ValueError, match=r"state of sparse training in the optimizer .*again|start over") as told:
        resumed(checkpoint, state)
    assert "\n" not in str(told.value)


def test_a_state_as_it_was_left_goes_on(checkpoint: dict[str, Any]) -> None:
    state = copy.deepcopy(checkpoint["optimizer"]["param_groups"][0]["sparsity"])
    assert resumed(checkpoint, state).steps == 12


@pytest.mark.parametrize("topology", ["rigl", "set", "static"])
def test_other_topologies_do_not_read_what_bidst_left_but_bidst_needs_its_own(
    checkpoint: dict[str, Any], topology: str
) -> None:
    settings = {"topology": topology}
    state = copy.deepcopy(checkpoint["optimizer"]["param_groups"][0]["sparsity"])
    assert resumed(checkpoint, state, **settings).steps == 12
    for memory_ in state["memory"].values():
        memory_.clear()
    assert resumed(checkpoint, state, **settings).steps == 12
    with pytest.raises(ValueError, match=r"candidates"):
        resumed(checkpoint, state)


@pytest.mark.parametrize("topology", ["rigl", "bidst"])
def test_a_model_of_another_moment_than_the_optimizer_is_refused(topology: str) -> None:
    """What a kill between the two files of a checkpoint leaves where an older one of the same name was."""
    model, optimizer = training(topology=topology)
    train_sparsely(model.train(), optimizer, 40)
    steps(model, optimizer, 2)
    early = copy.deepcopy(model.state_dict())
    steps(model, optimizer, 4)
    late = {"model": copy.deepcopy(model.state_dict()), "optimizer": copy.deepcopy(optimizer.state_dict())}
    state = late["optimizer"]["param_groups"][0]["sparsity"]
    assert resumed(late, state, topology=topology).steps == 12
    with pytest.raises(ValueError, match="other weights are active in the model than when it was saved"):
        resumed({**late, "model": early}, state, topology=topology)


def test_candidates_that_are_active_are_refused(checkpoint: dict[str, Any]) -> None:
    """Grown, they would be active twice."""
    state = copy.deepcopy(checkpoint["optimizer"]["param_groups"][0]["sparsity"])
    state["memory"][LAYER]["candidates"][0] = checkpoint["model"][f"{LAYER}.bidst_weight.default.indices"][0]
    with pytest.raises(ValueError, match=r"candidates are active weights\. It is damaged"):
        resumed(checkpoint, state)
