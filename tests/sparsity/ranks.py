"""A program on two gloo processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def on_two_ranks(program: str, folder: Path) -> None:
    """Run a program by torchrun, in a folder, where it may leave its results."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "program.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]


def set_sync(model: Any, synchronizes: bool) -> None:
    """Whether DDP or FSDP2 averages gradients in the next backward."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(synchronizes)
    else:
        model.require_backward_grad_sync = synchronizes
