"""From a folder to a running server that ends well."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from transformers.utils import logging

from hf_efficient.wrapped import pruner_below

from .app import Service
from .engine import PrunedModels, Source
from .limits import Limits


def serve(source: Source, limits: Limits, host: str, port: int, stop_seconds: int) -> None:
    """Load a model and answer requests until SIGINT or SIGTERM; requests that run then are answered first.

    Args:
        source: what is served.
        limits: of a request.
        host: name or address to listen at.
        port: likewise; 0 takes a free one.
        stop_seconds: how long running requests may take to end; a second SIGINT ends them at once.

    Raises:
        OSError: the address cannot be had, or the model cannot be loaded.
        ValueError: the pruner does not suit the model, or its processor has no chat template.
    """
    with bound(host, port) as listening:  # first: it fails before the weights are read
        logging.disable_progress_bar()
        service = Service(PrunedModels(source), limits)
        config = uvicorn.Config(
            service.app(), log_level="warning", timeout_graceful_shutdown=stop_seconds, server_header=False
        )
        with signals_only_stop():
            print(f"Serving {source.name} at http://{_shown(listening)}: {_pruner(service)}. Ctrl-C stops.", flush=True)
            uvicorn.Server(config).run(sockets=[listening])
    print("Stopped.", flush=True)


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has its address but does not listen yet: clients are turned away until the model is there."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(address)
        except OSError as error:
            raise OSError(f"host={host!r}, port={port} cannot be listened at: {error.strerror}.") from error
        yield opened


@contextmanager
def signals_only_stop() -> Iterator[None]:
    """In the block, SIGINT and SIGTERM do nothing of their own: uvicorn stops at them, and raises them again after."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _pruner(service: Service) -> str:
    config = pruner_below(service.chat.model).config
    return f"{config.method}, budget {config.budget!r}"
