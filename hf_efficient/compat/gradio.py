"""Gradio: what the Spaces read of its queue, which has no public name; as read in 6.31."""

from __future__ import annotations

from typing import Any

#: "module:name" -> words in its source, where a name exists on instances alone.
IN_SOURCE = {
    "gradio:Blocks": ("self._queue",),
    "gradio.queueing:Queue": ("event_queue_per_concurrency_id", "active_jobs"),
}


def events(demo: Any) -> list[Any]:
    """The requests that wait for a Space, and those that it works on."""
    queue = getattr(demo, "_queue", None)
    waiting = [event for line in list(getattr(queue, "event_queue_per_concurrency_id", {}).values())
               for event in list(line.queue)]  # fmt: skip
    return waiting + [event for job in list(getattr(queue, "active_jobs", ())) for event in job or ()]
