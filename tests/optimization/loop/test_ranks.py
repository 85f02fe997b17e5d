"""Plain loops on two gloo processes, with DDP and FSDP2, do what one process with the whole batch does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_efficient import MSAM, S2SAM, SAM, ZOSAM, LookSAM
from tests.optimization.training.distributed_run import Net, whole
from tests.sparsity.ranks import on_two_ranks, set_sync

#: Name -> the optimizer, and whether it is asked for losses alone.
METHODS: dict[str, tuple[type, dict[str, Any], bool]] = {
    "sam": (SAM, {}, False),
    "asam": (SAM, {"adaptive": True}, False),
    "s2sam": (S2SAM, {}, False),
    "msam": (MSAM, {}, False),
    "looksam": (LookSAM, {"reuse_interval": 2}, False),
    "zosam": (ZOSAM, {}, True),
    "zosam, two": (ZOSAM, {"num_queries": 2}, True),
    "guided": (ZOSAM, {"guided": True}, True),
    "guided, two": (ZOSAM, {"guided": True, "num_queries": 2}, True),
}
SPLITS = [[5, 3], [2, 6], [8, 0]]  # rows of each rank, in turn; the last leaves one with none


def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(6, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [(part, part[:, :4].argmax(1)) for part in x]


def optimizer_of(name: str, model: nn.Module) -> Any:
    cls, settings, _ = METHODS[name]
    return cls(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.2, momentum=0.9, **settings)


def run(name: str, model: Any, rank: int | None = None) -> None:
    """Train; on a rank with its rows, in two micro-batches where the method asks for no loss."""
    optimizer = optimizer_of(name, model)
    needs_closure = optimizer.variant.needs_batch
    for step, (x, labels) in enumerate(batches()):
        rows, scale = slice(None), 1.0
        if rank is not None:
            first = SPLITS[step % 3][0]
            rows, scale = slice(first, None) if rank else slice(first), 2.0
        mine = x[rows], labels[rows]

        def loss_of(part: tuple[Tensor, Tensor]) -> Tensor:
            logits = model(part[0], part[1].new_zeros(len(part[0])))["logits"]
            return nn.functional.cross_entropy(logits, part[1], reduction="sum") * (scale / len(x))

        optimizer.perturb((lambda: loss_of(mine)) if needs_closure else None)
        if rank is None or needs_closure:
            loss_of(mine).backward()
        else:
            for part, last in (((mine[0][:2], mine[1][:2]), False), ((mine[0][2:], mine[1][2:]), True)):
                set_sync(model, last)
                loss_of(part).backward()
        optimizer.step()
        optimizer.zero_grad()


PROGRAM = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tests.optimization.loop.test_ranks import METHODS, Net, run, whole

dist.init_process_group("gloo")
rank = dist.get_rank()
result = {}
for name, (_, _, losses) in METHODS.items():
    model = DistributedDataParallel(Net())
    run(name, model, rank)
    result[f"ddp {name}"] = whole(model)
    model = Net()
    fully_shard(model.first)
    fully_shard(model)
    try:
        run(name, model, rank)
        result[f"fsdp {name}"] = whole(model)
    except ValueError as error:
        result[f"fsdp {name}"] = str(error)
torch.save(result, f"rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    on_two_ranks(PROGRAM, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_are_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = Net()
    run(name, alone)
    for mode in ("ddp", "fsdp"):
        for rank in ranks:
            found = rank[f"{mode} {name}"]
            if mode == "fsdp" and METHODS[name][2]:
                assert "ZOSAMTrainer" in found
                continue
            for key, tensor in whole(alone).items():
                torch.testing.assert_close(found[key], tensor, atol=1e-9, rtol=0, msg=lambda m: f"{mode} {key}: {m}")
