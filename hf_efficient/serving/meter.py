"""What a prompt costs inside the model, measured where it runs: hooks on the model, in the thread that generates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from hf_efficient.compat.transformers import cache_of
from hf_efficient.wrapped import pruner_below, unwrapped

from .metrics import Metrics


class ClientGone(Exception):
    """Whoever asked is not there any more: nothing more is generated."""


class Held(NamedTuple):
    """What a layer of a cache holds: slots, bytes of each, and the most it holds, None for any number."""

    slots: int
    bytes_each: int
    window: int | None


class Job:
    """One request on its way through the model.

    Args:
        prompt_tokens: of the prompt, kept visual tokens among them.
        visual: whether it has pictures or videos.
        seed: of what is drawn, None for whatever comes.
    """

    def __init__(self, prompt_tokens: int, visual: bool, seed: int | None = None) -> None:
        self.prompt_tokens = prompt_tokens
        self.visual = visual
        self.seed = seed
        self.gone = threading.Event()
        self.started: float | None = None
        self.held: list[Held] | None = None  # after the prefill


#: The job whose request the event loop is serving, for what transformers' server code hands to the other thread.
JOB: ContextVar[Job] = ContextVar("job")


class Meter:
    """Counts what prompts cost, and ends a job whose client has left.

    Args:
        model: with a token pruner.
        metrics: that are counted up.
    """

    def __init__(self, model: Any, metrics: Metrics) -> None:
        self.metrics = metrics
        self.pruner = pruner_below(model)
        self._job: Job | None = None
        inner = unwrapped(model)
        inner.register_forward_pre_hook(self._before)
        inner.register_forward_hook(self._after)

    def run(self, job: Job, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that generates, for a job, in this thread.

        Raises:
            ClientGone: nobody waits for the answer.
        """
        if job.gone.is_set():
            raise ClientGone
        if job.seed is not None:
            torch.manual_seed(job.seed)
        self._job, job.started = job, time.perf_counter()
        try:
            result = function(*args, **kwargs)
        finally:
            self._job = None
        if job.held is not None:
            self._count(job, job.held)
        return result

    def _count(self, job: Job, held: list[Held]) -> None:
        """Of a job that has ended: only then the pruner tells of it."""
        units = self.pruner.last if job.visual and self.pruner is not None else []
        before, kept = sum(unit.num_tokens for unit in units), sum(len(unit.indices) for unit in units)
        self.metrics.add("prompt_tokens_total", job.prompt_tokens)
        self.metrics.add("visual_tokens_in_total", before)
        self.metrics.add("visual_tokens_kept_total", kept)
        self.metrics.add("kv_bytes_saved_total", bytes_saved(held, job.prompt_tokens + before - kept))

    def _before(self, model: Any, args: Any) -> None:
        if self._job is not None and self._job.gone.is_set():
            raise ClientGone

    def _after(self, model: Any, args: Any, output: Any) -> None:
        job = self._job
        if job is None or job.held is not None or job.started is None:
            return
        if model.device.type != "cpu":
            torch.accelerator.synchronize(model.device)
        self.metrics.add("prefill_seconds_sum", time.perf_counter() - job.started)
        self.metrics.add("prefill_seconds_count")
        job.held = held_by(cache_of(output))


def held_by(cache: Any) -> list[Held]:
    """What every layer of a cache holds; layers without keys and values are left out."""
    layers = []
    for layer in getattr(cache, "layers", ()):
        held = [t for t in (getattr(layer, "keys", None), getattr(layer, "values", None)) if t is not None]
        if held and held[0].shape[-2]:
            slots = held[0].shape[-2]
            bytes_each = sum(t.numel() * t.element_size() for t in held) // slots
            layers.append(Held(slots, bytes_each, getattr(layer, "sliding_window", None)))
    return layers


def bytes_saved(layers: list[Held], whole: int) -> int:
    """Bytes of keys and values that a prompt of `whole` tokens would have more than is held, layer by layer."""
    would = [whole if layer.window is None else min(whole, layer.window) for layer in layers]
    return sum(max(0, w - layer.slots) * layer.bytes_each for w, layer in zip(would, layers, strict=True))
