"""The body of a request, read up to a limit of bytes and of seconds."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from .limits import Limits, Refused
from .meter import ClientGone

READ_SECONDS = 60.0


async def read_body(request: Request, limits: Limits) -> bytes:
    """All of it.

    Raises:
        Refused: it is larger than the limit, or does not come.
        ClientGone: the client left before its end.
    """
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limits.body_bytes:
        raise _too_large(limits)
    raw = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                raw += part
                if len(raw) > limits.body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise Refused(f"The body did not come within {READ_SECONDS:.0f} seconds.", 408) from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(raw)


def _too_large(limits: Limits) -> Refused:
    return Refused(f"The body is larger than {limits.max_body_mb} megabytes, what this server takes.", 413)
