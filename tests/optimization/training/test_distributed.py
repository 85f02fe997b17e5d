"""Two gloo processes on the CPU: equal to each other to the bit, and to one process with the same global batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.optimization.training.distributed_run import accumulation_of, methods_of, train, whole


def launch(folder: Path, mode: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(port), str(Path(__file__).with_name("distributed_run.py")), str(folder), mode,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=560)
    assert done.returncode == 0, done.stderr[-4000:]


def check(folder: Path, mode: str) -> None:
    launch(folder, mode)
    plain, stock = (load_file(folder / f"{name}_0.safetensors") for name in ("plain", "stock"))
    assert all(torch.equal(plain[key], stock[key]) for key in stock)  # rho = 0 is the stock Trainer
    evaluated = load_file(folder / "evaluated_0.safetensors")  # between the steps, which changes nothing
    assert all(torch.equal(evaluated[key], tensor) for key, tensor in load_file(folder / "s2sam_0.safetensors").items())
    for name, method in methods_of(mode).items():
        ranks = [load_file(folder / f"{name}_{rank}.safetensors") for rank in (0, 1)]
        for key in ranks[0]:
            assert torch.equal(ranks[0][key], ranks[1][key]), (name, key)
        # random directions of a sharded model are drawn shard by shard, so they are others than in one process
        if not (mode == "fsdp" and name.split(",")[0] in ("zosam", "guided")):
            alone = whole(train(folder, method, 4, accumulation=accumulation_of(name)).model)
            for key in alone:
                torch.testing.assert_close(ranks[0][key], alone[key], atol=1e-9, rtol=0, msg=lambda m: f"{name}: {m}")
        if name not in ("plain", "merged"):
            assert max((ranks[0][key] - plain[key]).abs().max() for key in plain) > 1e-5, name


@pytest.mark.slow
def test_ddp(tmp_path: Path) -> None:
    check(tmp_path, "ddp")
    resumed, straight = (load_file(tmp_path / f"{name}_0.safetensors") for name in ("resumed", "s2sam"))
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)


@pytest.mark.slow
def test_fsdp2(tmp_path: Path) -> None:
    check(tmp_path, "fsdp")
