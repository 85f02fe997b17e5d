"""Seconds of a computation."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def seconds_of(run: Callable[[], object], device: torch.device | str, repeats: int) -> float:
    """Median seconds of `run()`, after one call that is not counted.

    On a CPU with one thread it is the processor's time in this thread, so that what other programs and threads take
    meanwhile does not count; it is the clock's time where several threads, or a GPU, work at once.

    Args:
        run: any computation.
        device: whose work is waited for.
        repeats: >= 1.
    """
    alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    wait = getattr(torch, torch.device(device).type).synchronize  # also of the CPU, where it does nothing
    found = []
    for _ in range(repeats + 1):
        wait()
        start = clock()
        run()
        wait()
        found.append(clock() - start)
    return median(found[1:])
