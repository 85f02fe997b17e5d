"""The server: routes, what is refused, and what is counted, around transformers' answers."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hf_efficient import __version__
from hf_efficient.wrapped import pruner_below

from .body import read_body
from .chat import Chat, parse_chat
from .engine import PrunedChat, PrunedModels
from .events import Events
from .limits import Limits, Refused
from .meter import JOB, ClientGone, Job
from .metrics import Metrics
from .prompts import Prompt, Prompts
from .refusals import CLIENT_GONE, FAILED, not_served, refusal

logger = logging.getLogger(__name__)
READERS = 4  # threads that decode pictures and videos


class Service:
    """One model behind its routes.

    Args:
        models: with the loaded model.
        limits: of a request.

    Raises:
        ValueError: the model's processor has no chat template.
    """

    def __init__(self, models: PrunedModels, limits: Limits) -> None:
        self.limits, self.metrics = limits, Metrics()
        self.chat = PrunedChat(models, self.metrics)
        self.prompts = Prompts(self.chat.model, self.chat.processor)
        self.readers = ThreadPoolExecutor(READERS, "reading")
        self.preparing = ThreadPoolExecutor(1, "preparing")
        self.started = int(time.time())

    def app(self) -> Starlette:
        """As ASGI has it."""
        routes = [
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.list_models),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: not_served}, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Ends the threads that read and prepare, with the server."""
        yield
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.preparing.shutdown(wait=False, cancel_futures=True)

    async def health(self, request: Request) -> Response:
        """Whether the server answers."""
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def list_models(self, request: Request) -> Response:
        """The one model, and its pruner."""
        model = {"id": self.chat.name, "object": "model", "created": self.started, "owned_by": "hf_efficient"}
        pruner = {"hf_efficient": __version__, "token_pruner": pruner_below(self.chat.model).config.to_dict()}
        return JSONResponse({"object": "list", "data": [model | pruner]})

    async def complete(self, request: Request) -> Response:
        """A chat completion, or a sentence that says why there is none."""
        self.metrics.add("requests_running")
        try:
            response = await self._answer(request)
        except Refused as refused:
            response = refusal(str(refused), refused.status)
        except ClientGone:
            response = Response(status_code=CLIENT_GONE)
        except Exception:
            logger.exception("A chat completion failed")
            response = refusal(FAILED, 500)
        if not isinstance(response, Events):
            self._done(response.status_code)
        return response

    def _done(self, status: int) -> None:
        self.metrics.add("requests_running", -1)
        self.metrics.add("requests_total", code=status)
        if status >= 500 and status != 503:
            self.metrics.add("failures_total")

    async def _answer(self, request: Request) -> Response:
        if self.metrics.value("requests_running") > self.limits.max_waiting:
            raise Refused(f"{self.limits.max_waiting} requests wait already; ask again later.", 503)
        raw = await read_body(request, self.limits)
        loop = asyncio.get_running_loop()
        chat: Chat = await loop.run_in_executor(self.readers, self._parse, raw)
        prompt: Prompt = await loop.run_in_executor(self.preparing, self.prompts.make, chat)
        job = Job(prompt.tokens, prompt.visual, chat.seed)
        JOB.set(job)
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        if chat.stream:
            return Events(self.chat.stream(prompt, request_id), job, self.metrics, self._done)
        watching = asyncio.create_task(watch(request, job))
        try:
            completion = await self.chat.answer(prompt, request_id)
        finally:
            watching.cancel()
        self.metrics.add("generated_tokens_total", completion["usage"]["completion_tokens"])
        return JSONResponse(completion)

    def _parse(self, raw: bytes) -> Chat:
        chat = parse_chat(raw, self.limits, self.prompts.placeholders, self.prompts.takes_videos)
        if chat.model not in (None, self.chat.name):
            raise Refused(f"The model {chat.model[:200]!r} is not served here; {self.chat.name!r} is.", 404)
        return chat


async def watch(request: Request, job: Job) -> None:
    """Mark a job whose client has left; cancelled when the answer is there."""
    with suppress(asyncio.CancelledError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.gone.set()
