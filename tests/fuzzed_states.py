"""State that is loaded into models, engines and optimizers: a good one of each, and what loads it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import hf_efficient
from benchmarks.sparsity.planted import random_weight
from hf_efficient.methods import SPARSITY
from hf_efficient.sparsity.csr.linear import CSRLinear
from hf_efficient.sparsity.training.engine import KEY, SparseTraining


def csr_layer() -> tuple[Any, Callable[[Any], Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(CSRLinear(torch.randn(16, 32) * (torch.rand(16, 32) < 0.2), torch.zeros(16)))
    x = torch.randn(5, 32)

    def load(state: Any) -> Any:
        fresh = copy.deepcopy(model)
        assign = not all(
            isinstance(t, torch.Tensor) and t.dtype == model.state_dict().get(n, t).dtype for n, t in state.items()
        )
        try:
            fresh.load_state_dict(state, assign=assign)
        except RuntimeError as error:  # torch's own: names and shapes
            raise ValueError(f"0: the indices: {type(error).__name__}") from error
        layer: Any = fresh[0]
        dense = torch.zeros(16, 32)
        for row in range(16):
            mine = slice(int(layer.starts[row]), int(layer.starts[row + 1]))
            dense[row, layer.columns[mine].long()] = layer.values[mine].float()
        assert torch.allclose(fresh(x), x @ dense.T + layer.bias.float(), atol=1e-4, equal_nan=True)
        return dict(fresh.state_dict())

    return dict(model.state_dict()), load


def engine_state() -> tuple[Any, Callable[[Any], Any]]:
    """Of BiDST, after two exchanges, as it lies in an optimizer's first group."""
    shapes = {"a": (12, 20), "b": (8, 30)}

    def begun() -> tuple[dict[str, Any], torch.optim.Optimizer]:
        weights = {name: random_weight(shape, 30, n) for n, (name, shape) in enumerate(shapes.items())}
        return weights, torch.optim.AdamW([w.values for w in weights.values()], lr=0.01)

    def steps(weights: dict[str, Any], optimizer: torch.optim.Optimizer, count: int) -> dict[str, Any]:
        rule: Any = SPARSITY.row("bidst").implementation
        topology = rule(100, update_interval=4, score_interval=2)
        engine = SparseTraining(weights, optimizer, topology)
        for _ in range(count):
            sum((w.dense() - 1).square().sum() for w in weights.values()).backward()
            optimizer.step()
            engine.step()
            optimizer.zero_grad()
        return {name: (w.values.detach().clone(), w.indices.clone()) for name, w in weights.items()}

    weights, optimizer = begun()
    steps(weights, optimizer, 9)
    saved = {name: copy.deepcopy(w.state_dict()) for name, w in weights.items()}
    groups = copy.deepcopy(optimizer.state_dict())

    def load(state: Any) -> Any:
        weights, optimizer = begun()
        for name, weight in weights.items():
            weight.load_state_dict(saved[name])
        optimizer.load_state_dict(copy.deepcopy(groups))
        optimizer.param_groups[0][KEY] = state.get("state") if isinstance(state, dict) else state
        if KEY in optimizer.param_groups[0] and optimizer.param_groups[0][KEY] is None:
            raise ValueError("The state of sparse training is null")
        after = steps(weights, optimizer, 6)
        assert all(len(i.unique()) == 30 and i.min() >= 0 and i.max() < 240 for _, i in after.values())
        return after

    return {"state": groups["param_groups"][0][KEY]}, load


def optimizer_state() -> tuple[Any, Callable[[Any], Any]]:
    """Of LookSAM, which remembers a direction, as `state_dict` gives it."""

    def begun() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
        return net, hf_efficient.LookSAM(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

    def steps(net: nn.Module, optimizer: Any, count: int) -> None:
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
        for _ in range(count):
            optimizer.perturb(lambda: net(x).square().mean())
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    net, optimizer = begun()
    steps(net, optimizer, 3)
    whole = copy.deepcopy(optimizer.state_dict())

    def load(state: Any) -> Any:
        net, optimizer = begun()
        optimizer.load_state_dict({**copy.deepcopy(whole), **state})
        steps(net, optimizer, 2)
        return dict(net.state_dict())

    return {"sam": whole["sam"]}, load


STATES: dict[str, tuple[Callable[[], tuple[Any, Callable[[Any], Any]]], str]] = {
    "CSR layer": (csr_layer, "the indices"),
    "BiDST in a checkpoint": (engine_state, "state of sparse training"),
    "SAM in a checkpoint": (optimizer_state, "sam"),
}
