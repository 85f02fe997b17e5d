"""Start a Space as its `app.py` would, and open it in a browser."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def import_app(space: Path) -> Any:
    """The Space's app.py as a module."""
    name = f"space_{space.name}"
    spec = importlib.util.spec_from_file_location(name, space / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Address of the running Space."""
    _, url, _ = app.demo.queue().launch(
        prevent_thread_lock=True, server_name="127.0.0.1", quiet=True, **app.LAUNCH_OPTIONS
    )
    try:
        yield url
    finally:
        app.demo.close()


@contextmanager
def browser_page(url: str, width: int = 1280, height: int = 1000) -> Iterator[Any]:
    """A page of Debian's Chromium; it must raise no script error and ask nobody but the Space for anything."""
    playwright = pytest.importorskip("playwright.sync_api")
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on this machine")
    problems: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url.rstrip("/"), "data:", "blob:"))
                else problems.append(f"request to {request.url}")
            ),
        )
        page.set_default_timeout(120_000)  # a busy machine is slow, not broken
        page.goto(url, wait_until="domcontentloaded")
        yield page
        browser.close()
    assert not problems
