"""Bytes of tensors that a training step takes, counted, and resident memory of the process, measured."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def peak_bytes(step: Callable[[], None]) -> int:
    """Most bytes of tensors alive during a step beyond those alive at its start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    total = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def kept_for_backward(model: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that a forward keeps, but for parameters; shared storage counts once."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        parts = [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]
        kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in parts})
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x)
    total = sum(size for place, size in kept.items() if place not in own)
    del out
    return total


def resident(reset_peak: bool = False) -> tuple[int, int] | None:
    """Resident bytes of this process, now and at their peak; None where Linux's /proc is absent.

    Args:
        reset_peak: give freed memory back, and count the peak from here.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    if reset_peak:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "kB" in line}
    return sizes["VmRSS:"], sizes["VmHWM:"]
