"""Timing in turns: whatever is compared runs job by job, round by round, in one process.

A busy machine then affects all jobs alike. Compare them by `ratio`, the median over rounds of the ratio within a round;
absolute times depend on the machine.
"""

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Job = Callable[[], object]
Clock = Callable[[], float]
Around = Callable[[], contextlib.AbstractContextManager[Any]]
Seconds = dict[str, list[float]]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
FEWEST_ROUNDS = 3  # when the time is limited


def clock_of(device: str) -> Clock:
    """Wall time of what a device does: on a GPU, which works on while Python goes on, read when all is done."""
    if device == "cpu":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return read


def time_in_turns(
    jobs: Mapping[str, Job], rounds: int | None = None, *, seconds: float = 0.0, warm_up: bool = True,
    clock: Clock = time.perf_counter, around: Mapping[str, Around] | None = None,
) -> Seconds:  # fmt: skip
    """Seconds that every job takes in every round.

    Args:
        jobs: by name. Each round runs them in a random order of its own, the same in every call: what ran before leaves
            traces in caches and allocator.
        rounds: how many; by default as many as begin within `seconds`, at least `FEWEST_ROUNDS`.
        seconds: see `rounds`.
        warm_up: run one round first that is not counted.
        clock: wall time by default.
        around: context managers that jobs run in; entering and leaving them is not counted.
    """
    taken: Seconds = {name: [] for name in jobs}
    number, end = 0 if warm_up else 1, time.perf_counter() + seconds

    def goes_on() -> bool:
        if rounds is not None:
            return number <= rounds
        return number <= FEWEST_ROUNDS or time.perf_counter() < end

    while goes_on():
        for name in random.Random(number).sample(list(jobs), len(jobs)):
            with (around or {}).get(name, contextlib.nullcontext)():
                start = clock()
                jobs[name]()
                elapsed = clock() - start
            if number:
                taken[name].append(elapsed)
        number += 1
    return taken


def ratio(
    seconds: Seconds, above: str, below: str, middle: Callable[[list[float]], float] = statistics.median
) -> float:
    """Median over rounds of the ratio within a round; `middle` replaces the median."""
    return middle([a / b for a, b in zip(seconds[above], seconds[below], strict=True)])


def median_ms(seconds: list[float]) -> float:
    """Median in milliseconds, to the microsecond."""
    return round(1e3 * statistics.median(seconds), 3)
