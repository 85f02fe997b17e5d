"""Two gloo processes: DDP, and FSDP2 with sharded active weights, are one process with the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from hf_efficient import BiDSTConfig, train_sparsely
from tests.sparsity.ranks import on_two_ranks, set_sync
from tests.sparsity.tuner.test_fsdp2 import Block

STEPS, HALF, ROWS = 16, 7, 12  # steps, those before a training is broken off, and rows of a step
SPLIT = [7, 5]  # rows that each rank has of them


class Experts(nn.Module):
    """Two experts in one parameter of three dimensions, of which the sign of the first input chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(2, 32, 16) * 0.2)
        self.down_proj = nn.Parameter(torch.randn(2, 16, 16) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] > 0).long()
        gate, up = torch.einsum("bi,boi->bo", x, self.gate_up_proj[chosen]).chunk(2, dim=-1)
        return x + torch.einsum("bi,boi->bo", torch.relu(gate) * up, self.down_proj[chosen])


LINEAR: dict[str, Any] = {"target_modules": ["up", "down"], "update_interval": 3, "sparsity": 0.8}
CASES: dict[str, dict[str, Any]] = {
    "weight": {**LINEAR, "target": "weight"},
    "snip": {**LINEAR, "target": "weight", "init": "snip", "levelling": 0.0},
    "delta": {**LINEAR, "target": "delta", "train_others": True},
    "start": {**LINEAR, "target": "weight", "topology": "rigl", "grow_from": "start", "init": "magnitude"},
    "set": {**LINEAR, "target": "weight", "topology": "set"},
    "mest": {**LINEAR, "target": "weight", "topology": "mest"},
    "pattern": {**LINEAR, "target": "weight", "pattern": "2:4", "sparsity": 0.5},
    "pieces": {**LINEAR, "target": "weight", "target_modules": ["2"], "sparsity": 0.98},  # one active weight
    "experts": {**LINEAR, "target": "weight", "target_modules": ["1"]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "global": {**LINEAR, "target": "weight", "distribution": "global"},
    "falls": {**LINEAR, "target": "weight", "initial_sparsity": 0.5},
}


def plain(experts: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Experts() if experts else Block(), nn.Linear(16, 4)).double()


def adapted(name: str) -> PeftModel:
    config = BiDSTConfig(**{**CASES, **REFUSED}[name])
    return get_peft_model(plain(name == "experts"), config, autocast_adapter_dtype=False)


def again(folder: str | Path) -> PeftModel:
    """The adapter that was saved there, on its model."""
    return PeftModel.from_pretrained(plain(False), str(folder), is_trainable=True, autocast_adapter_dtype=False)


def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(STEPS, ROWS, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [(part, part[:, :4].argmax(1)) for part in x]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)


def run(model: nn.Module, optimizer: Any, data: list[Any], rank: int | None = None, ranks: int = 2) -> None:
    """Train; on a rank: with its rows, the last ones in a micro-batch of their own that is not synchronized alone."""
    for x, y in data:
        if rank is None:
            nn.functional.cross_entropy(model(x), y).backward()
        else:
            mine = [t.split(SPLIT)[rank] for t in (x, y)]
            for last, (inputs, labels) in enumerate(zip(mine[0].split(4), mine[1].split(4), strict=True)):
                set_sync(model, bool(last))
                loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
                (loss * ranks / len(x)).backward()
        optimizer.step()
        optimizer.zero_grad()


PROGRAM = """
import torch, torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from hf_efficient import train_sparsely
from hf_efficient.shards import whole
from tests.sparsity.tuner.test_ranks import CASES, HALF, STEPS, adapted, again, batches, load_named, optimizer_of, run

dist.init_process_group("gloo")
rank = dist.get_rank()
FULL = StateDictOptions(full_state_dict=True)

def sharded(model):
    for module in (*model.base_model.model[:2], model):
        fully_shard(module)
    return model

def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)

def found(model, training):
    state = {key: whole(tensor).clone() for key, tensor in model.state_dict().items()}
    return {"tensors": state, "report": training.report()}

result = {}
for name in CASES:
    inner = adapted(name)
    model = DistributedDataParallel(inner)
    optimizer = optimizer_of(inner)
    training = train_sparsely(inner, optimizer, STEPS)
    run(model, optimizer, batches(), rank)
    result[f"ddp {name}"] = found(inner, training)
    model = sharded(adapted(name))
    optimizer = optimizer_of(model)
    training = train_sparsely(model, optimizer, STEPS)
    values = [w.values for w in training.weights.values()]
    assert all(isinstance(v, DTensor) for v in values)
    run(model, optimizer, batches(), rank)
    assert all(isinstance(v, DTensor) and v is w.values for v, w in zip(values, training.weights.values()))
    result[f"fsdp {name}"] = found(model, training)
    if name == "weight":
        result["save"] = error_of(lambda: model.save_pretrained("refused"))
# what one process has begun, DDP and FSDP2 end
for mode in ("ddp", "fsdp"):
    model = again("one")
    if mode == "fsdp":
        model = sharded(model)
    optimizer = optimizer_of(model)
    saved = torch.load("one.pt", weights_only=True)
    if mode == "ddp":
        optimizer.load_state_dict(saved["plain"])
    else:
        load_named(model, optimizer, saved["named"])
    training = train_sparsely(model, optimizer, STEPS)
    run(DistributedDataParallel(model) if mode == "ddp" else model, optimizer, batches()[HALF:], rank)
    result[f"{mode} resumed"] = found(model, training)
# what FSDP2 has begun, saved whole
model = sharded(adapted("weight"))
optimizer = optimizer_of(model)
training = train_sparsely(model, optimizer, STEPS)
run(model, optimizer, batches()[:HALF], rank)
state = get_model_state_dict(model, options=FULL)
named = get_optimizer_state_dict(model, optimizer, options=FULL)
if rank == 0:
    model.save_pretrained("two", state_dict=state)
    torch.save({"named": named}, "two.pt")
model = sharded(adapted("global"))
result["global"] = error_of(lambda: train_sparsely(model, optimizer_of(model), STEPS))
model = sharded(adapted("falls"))
result["falls"] = error_of(lambda: train_sparsely(model, optimizer_of(model), STEPS))
model = adapted("weight")
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2, 1), mesh_dim_names=("other", "data"))
for module in (*model.base_model.model[:2], model):
    fully_shard(module, mesh=mesh["data"])
result["some"] = error_of(lambda: train_sparsely(model, optimizer_of(model), STEPS))
torch.save(result, f"rank{rank}.pt")
dist.destroy_process_group()
"""


def load_named(model: nn.Module, optimizer: Any, saved: Any) -> None:
    """As docs/distributed.md has it: torch takes moments by name, and stumbles over what else lies in a group."""
    topology = saved["param_groups"][0].pop("sparsity")
    set_optimizer_state_dict(model, optimizer, saved, options=FULL)
    optimizer.param_groups[0]["sparsity"] = topology


Ranks = tuple[Path, list[dict[str, Any]]]
FULL = StateDictOptions(full_state_dict=True)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """A folder, and what both ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    model = adapted("weight")
    optimizer = optimizer_of(model)
    train_sparsely(model, optimizer, STEPS)
    run(model, optimizer, batches()[:HALF])
    model.save_pretrained(folder / "one")
    named = get_optimizer_state_dict(model, optimizer, options=FULL)
    torch.save({"plain": optimizer.state_dict(), "named": named}, folder / "one.pt")
    on_two_ranks(PROGRAM, folder)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def straight(name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One process, all steps: its tensors and its report."""
    model = adapted(name)
    optimizer = optimizer_of(model)
    training = train_sparsely(model, optimizer, STEPS)
    run(model, optimizer, batches())
    return model.state_dict(), training.report()


def check(theirs: dict[str, Any], state: dict[str, Tensor], report: dict[str, float]) -> None:
    for key in ("sparsity", "mask_updates", "share_changed", "itop_rate"):
        assert theirs["report"][key] == report[key], key
    assert theirs["tensors"].keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(theirs["tensors"][key], tensor, msg=lambda m: f"{key}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_process(name: str, mode: str, ranks: Ranks) -> None:
    state, report = straight(name)
    assert report["mask_updates"] >= 2 * (name != "pieces")
    for rank in ranks[1]:
        check(rank[f"{mode} {name}"], state, report)


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_ranks(ranks: Ranks) -> None:
    state, report = straight("weight")
    for rank in ranks[1]:
        check(rank["ddp resumed"], state, report)
        check(rank["fsdp resumed"], state, report)
    model = again(ranks[0] / "two")
    optimizer = optimizer_of(model)
    named = torch.load(ranks[0] / "two.pt", weights_only=True)["named"]
    load_named(model, optimizer, named)
    training = train_sparsely(model, optimizer, STEPS)
    run(model, optimizer, batches()[HALF:])
    check({"tensors": model.state_dict(), "report": training.report()}, state, report)


@pytest.mark.slow
def test_what_pieces_cannot_do_is_refused(ranks: Ranks) -> None:
    for rank in ranks[1]:
        assert "get_model_state_dict(model" in rank["save"]
        assert rank["global"].startswith("distribution='global', topology='gmp' and initial_sparsity change")
        assert rank["falls"] == rank["global"]
        assert "of which a topology cannot read all" in rank["some"]
    assert not list((ranks[0] / "refused").glob("adapter*"))  # a README alone
