"""Responses that say why there is no completion, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

CLIENT_GONE = 499
FAILED = "The server failed at this request; its log says why."


def error_body(message: str, status: int) -> dict[str, Any]:
    """The JSON of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def refusal(message: str, status: int) -> Response:
    """The response that says it."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse(error_body(message, status), status, headers)


async def not_served(request: Request, error: Exception) -> Response:
    """For paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    served = "POST /v1/chat/completions, GET /v1/models, /health and /metrics"
    return refusal(f"{request.method} {request.url.path[:200]} is not served; {served} are.", error.status_code)
