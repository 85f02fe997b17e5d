"""The stream of a completion as a response: its end marked, its errors as JSON, its outcome told whatever happens."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse

from .meter import JOB, Job
from .metrics import Metrics
from .refusals import CLIENT_GONE, FAILED, error_body

logger = logging.getLogger(__name__)


class Events(StreamingResponse):
    """Server-sent events.

    Args:
        events: of the engine.
        job: that makes them; it ends with the response.
        metrics: that count the tokens.
        ended: is told the status code of the outcome, once, also where the client left before the first event.
    """

    def __init__(self, events: AsyncIterator[str], job: Job, metrics: Metrics, ended: Callable[[int], None]) -> None:
        super().__init__(self._told(events), media_type="text/event-stream")
        self.job, self.metrics, self.ended, self.outcome = job, metrics, ended, CLIENT_GONE

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""
        JOB.set(self.job)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.gone.set()
            self.ended(self.outcome)

    async def _told(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for event in events:
                if event.startswith('data: {"error"'):  # of transformers: 200 was sent already
                    raise RuntimeError(event.strip())
                if '"usage":{' in event:
                    usage = json.loads(event.removeprefix("data: "))["usage"]
                    self.metrics.add("generated_tokens_total", usage["completion_tokens"])
                yield event
            self.outcome = 200
            yield "data: [DONE]\n\n"
        except Exception:
            self.outcome = 500
            logger.exception("A chat completion failed")
            yield f"data: {json.dumps(error_body(FAILED, 500))}\n\n"
