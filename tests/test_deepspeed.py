"""DeepSpeed's ZeRO-1 and ZeRO-2 are refused, and do not train as if no method was there.

With the library, on two gloo processes on the CPU, where it is installed; what it does to an optimizer, everywhere.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient import S2SAM, SAM, ZOSAM
from hf_efficient.optimizer_state import group_of

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
import deepspeed, torch
from peft import get_peft_model
from torch import nn
from hf_efficient import S2SAM, SAM, ZOSAM, train_sparsely
from tests.sparsity.models import llama
from tests.sparsity.tuner.test_trainer import Sentences, config

deepspeed.init_distributed("gloo", dist_init_required=True)
ZERO = {"stage": int(sys.argv[1])}
SETTINGS = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": ZERO, "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False}

def prepared(model, optimizer):
    return deepspeed.initialize(model=model, optimizer=optimizer, config=SETTINGS)[:2]

def train(model, optimizer):
    engine, _ = prepared(model, optimizer)
    for ids in Sentences(size=40).ids.split(2):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()

def refused(action):
    try:
        action()
    except ValueError as error:
        assert "ZeRO" in str(error) and "FSDP2" in str(error), error
    else:
        raise SystemExit("not refused")

for cls in (S2SAM, SAM, ZOSAM):
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    optimizer = cls(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
    engine, _ = prepared(model, optimizer)
    refused(lambda: optimizer.perturb(lambda: engine(torch.randn(2, 8)).square().mean()))

for early in (True, False):
    model = get_peft_model(llama(), config(target_modules="all-linear")).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    if early:
        train_sparsely(model, optimizer, total_steps=20)
        refused(lambda: train(model, optimizer))  # at the first exchange
    else:
        _, given = prepared(model, optimizer)
        for one in (optimizer, given):
            refused(lambda: train_sparsely(model, one, total_steps=20))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", ["1", "2"])
def test_loops_under_deepspeed_are_refused(tmp_path: Path, stage: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(program), stage], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.mark.parametrize("cls", [S2SAM, SAM, ZOSAM])
def test_an_optimizer_that_was_given_other_parameters_does_not_perturb(cls: Any) -> None:
    """What ZeRO-1 and ZeRO-2 do: a flat copy takes the place of all parameters of a group."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = cls(model.parameters(), torch.optim.SGD, lr=0.1)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).requires_grad_()
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(ValueError, match="ZeRO gives an optimizer flat pieces"):
        optimizer.perturb(lambda: model(torch.ones(1, 3)).sum())


def test_a_parameter_that_an_optimizer_lost_is_told_of() -> None:
    layer = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    assert group_of(optimizer, layer.bias) is optimizer.param_groups[0]
    optimizer.param_groups[0]["params"] = [torch.zeros(16, requires_grad=True)]
    with pytest.raises(ValueError, match=r"shape \(4, 3\).*ZeRO"):
        group_of(optimizer, layer.weight)
