"""Seconds of a computation."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def seconds_of(run: Callable[[], object], device: torch.device | str, repeats: int) -> float:
    """Median seconds of `run()`, after one call that is not counted.

    Args:
        run: any computation.
        device: whose work is waited for.
        repeats: >= 1.
    """
    wait = getattr(torch, torch.device(device).type).synchronize  # also of the CPU, where it does nothing
    found = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - start)
    return median(found[1:])
