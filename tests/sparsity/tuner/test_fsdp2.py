"""FSDP2 on two gloo processes: the base sharded, active weights whole; equal to one process with the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from hf_efficient import BiDSTConfig, train_sparsely
from tests.sparsity.ranks import on_two_ranks

PROGRAM = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from tests.sparsity.tuner.test_fsdp2 import CASES, adapted, batches, plain, run

dist.init_process_group("gloo")
rank = dist.get_rank()

def shard(model, ignored):
    for module in (*model.base_model.model[:2], model):
        fully_shard(module, ignored_params=ignored)

def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)

result = {}
for name, settings in CASES.items():
    model = adapted(**settings)
    shard(model, {p for p in model.parameters() if p.requires_grad})
    assert isinstance(model.base_model.model[0].up.base_layer.weight, DTensor)
    training = run(model, [(x.chunk(2)[rank], y.chunk(2)[rank]) for x, y in batches()])
    tensors = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in model.state_dict().items()}
    result[name] = {"tensors": tensors, "updates": training.report()["mask_updates"]}
    if rank == 0:
        model.save_pretrained(name)
    result["merge"] = error_of(model.merge_adapter)
net = plain().double()
fully_shard(net)
result["late"] = error_of(lambda: adapted(net, target="delta"))
torch.save(result, f"rank{rank}.pt")
dist.destroy_process_group()
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


CASES: dict[str, dict[str, Any]] = {
    "delta": {"target": "delta", "train_others": True},  # snip reads the sharded base weights
    "weight": {"target": "weight"},
    "static": {"target": "delta", "topology": "static", "init": "random"},
}


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(16, 4))


def adapted(net: nn.Module | None = None, **settings: Any) -> PeftModel:
    often = {} if settings.get("topology") else {"update_interval": 3}
    config = BiDSTConfig(sparsity=0.8, target_modules=["up", "down"], backend="dense", **often, **settings)
    return get_peft_model(net or plain().double(), config, autocast_adapter_dtype=False)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 8, 16, generator=generator, dtype=torch.float64)
    return [(part, part[:, :4].argmax(1)) for part in x]


def run(model: PeftModel, data: list[tuple[Tensor, Tensor]]) -> Any:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    training = train_sparsely(model, optimizer, 16)
    for x, y in data:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return training


@pytest.mark.slow
def test_the_base_is_sharded_and_the_training_is_that_of_one_process(tmp_path: Path) -> None:
    on_two_ranks(PROGRAM, tmp_path)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name, settings in CASES.items():
        model = adapted(**settings)
        training = run(model, batches())
        assert training.report()["mask_updates"] == ranks[0][name]["updates"]
        assert (name == "static") != bool(ranks[0][name]["updates"])
        state = model.state_dict()
        for rank in ranks:
            assert state.keys() == rank[name]["tensors"].keys()
            for key, tensor in state.items():
                torch.testing.assert_close(rank[name]["tensors"][key], tensor, msg=lambda m: f"{name}: {key}: {m}")
        again = PeftModel.from_pretrained(plain().double(), str(tmp_path / name), autocast_adapter_dtype=False)
        x = batches()[0][0]
        torch.testing.assert_close(again.eval()(x), model.eval()(x))
    assert "cannot be merged into shards" in ranks[0]["merge"]
    assert "is sharded" in ranks[0]["late"]
    assert "Make the adapter first" in ranks[0]["late"]
