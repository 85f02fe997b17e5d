"""Threads as they were: an encoder may have made this process one that runs before all others."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def same_scheduling() -> Iterator[None]:
    """In the block a library may start threads; afterwards they, and this one, are scheduled as this one was before.

    SVT-AV1 asks for the highest real-time priority wherever it may, which is for root, so in most containers: for its
    own threads, and for the one that calls it, for good. What is trained there afterwards would keep the whole machine
    from doing anything else.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    before = {thread: os.sched_getscheduler(thread) for thread in _threads()}
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)
        for thread in _threads():
            with suppress(ProcessLookupError):  # it has ended since
                if os.sched_getscheduler(thread) != before.get(thread, policy):
                    os.sched_setscheduler(thread, policy, priority)


def _threads() -> list[int]:
    """All threads of this process."""
    return [int(name) for name in os.listdir("/proc/self/task")]
