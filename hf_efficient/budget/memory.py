"""Bytes of tensors that a computation takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.compat.torch import storage_id


def peak_bytes(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Most bytes of tensors held at once during `run()`, beyond those held at its start.

    Args:
        run: any computation.
        device: where it works. On CUDA the allocator's own count is read, whose peak starts anew; elsewhere
            torch's profiler notes every allocation of the CPU.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    total = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def kept_for_backward(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of the tensors that `run()`, a forward of the model, keeps for backward, but for weights and buffers."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        for part in stored_parts(tensor):
            kept[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()  # held, so that nothing that it keeps is freed and its place used again
    total = sum(size for place, size in kept.items() if place not in own)
    del result
    return total


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors; those that share their memory count once."""
    sizes: dict[int, int] = {}
    views: dict[int, dict[int, int]] = {}  # storage -> start of a view -> its bytes
    for tensor in tensors:
        for part in stored_parts(tensor):
            at, start = storage_id(part), int(part.storage_offset()) * part.element_size()
            sizes[at] = part.untyped_storage().nbytes()
            found = views.setdefault(at, {})
            found[start] = max(found.get(start, 0), part.numel() * part.element_size())
    return sum(min(sizes[at], sum(found.values())) for at, found in views.items())


def device_of(model: nn.Module) -> torch.device:
    """Where the first weight or buffer lies that lies anywhere; parts that accelerate has offloaded do not.

    Raises:
        ValueError: there is none.
    """
    devices = [t.device for t in chain(model.parameters(), model.buffers())]
    if not devices:
        raise ValueError(f"{type(model).__name__} has no weights: there is nothing to measure.")
    for device in devices:
        if device.type != "meta":
            return device
    raise ValueError(
        f"All weights of {type(model).__name__} are on the device 'meta', without values; load them first."
    )


def stored_parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold a tensor: itself, a sparse one's values and indices, a quantized one's codes."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in stored_parts(getattr(tensor, name))]
    if tensor.layout is torch.sparse_coo:
        whole = tensor if tensor.is_coalesced() else tensor.coalesce()
        return [whole.indices(), whole.values()]
    if tensor.layout is torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return [tensor]


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (list, tuple)) else []
