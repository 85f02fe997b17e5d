"""What the Spaces share: values are checked, since a client may post any; work has a deadline; files are deleted."""

from __future__ import annotations

import contextvars
import logging
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from hf_efficient.compat.gradio import events
from hf_efficient.extras import extra
from hf_efficient.files.temporary import server_folder, sweep
from hf_efficient.reading import is_number, shown

with extra("spaces"):
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
KEEP_SECONDS = float(os.environ.get("SPACE_KEEP_SECONDS", "3600"))  # how long an upload or a result is kept
LARGEST_REQUEST = 1 << 20  # bytes of a request that is no upload: a question and some numbers
LONGEST_QUEUE = 200
SHARED_STYLE = Path(__file__).parent / "assets" / "space.css"
_LOG = logging.getLogger(__name__)
_WORKER = ThreadPoolExecutor(1, thread_name_prefix="space")


def refusal(message: str) -> gr.Error:
    """The error for input that the page cannot use; it does not go to the log."""
    return gr.Error(escape(message, quote=False), print_exception=False)


def whole(name: str, value: object, least: int, most: int) -> int:
    """The value as an int from `least` to `most`, or a refusal: a client may send more than the slider allows."""
    if not is_number(value) or value != int(value) or not least <= value <= most:  # type: ignore[call-overload, operator]
        raise refusal(f"{name}: {shown(value)} is not a whole number from {least} to {most}.")
    return int(value)  # type: ignore[call-overload, no-any-return]


def number(name: str, value: object, least: float, most: float) -> float:
    """The value as a float from `least` to `most`, or a refusal."""
    if not is_number(value) or not least <= value <= most:  # type: ignore[operator]
        raise refusal(f"{name}: {shown(value)} is not a number from {least:g} to {most:g}.")
    return float(value)  # type: ignore[arg-type]


def one_of(name: str, value: object, choices: Iterable[T]) -> T:
    """The choice that the value names, or a refusal."""
    known = list(choices)
    for choice in known:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == choice:
            return choice
    raise refusal(f"{name}: {shown(value)} is not one of {', '.join(map(str, known))}.")


def some_of(name: str, value: object, choices: Sequence[T]) -> list[T]:
    """The choices that a list names, each once and in their own order, or a refusal."""
    if value is not None and (not isinstance(value, (list, tuple)) or len(value) > len(choices)):
        raise refusal(
            f"{name}: {shown(value)} is not a list of up to {len(choices)} of {', '.join(map(str, choices))}."
        )
    named = [one_of(name, each, choices) for each in value or []]
    return [choice for choice in choices if choice in named]


class Deadline:
    """Call it at every step of some work: it ends the work when the time is over.

    Args:
        seconds: from now.
        advice: what to do then.
    """

    def __init__(self, seconds: float, advice: str) -> None:
        self.seconds, self.advice, self.end = seconds, advice, time.monotonic() + seconds

    def __call__(self, *_: object) -> None:
        """Raises:
        gradio.Error: the time is over.
        """
        if time.monotonic() > self.end:
            raise refusal(f"This took more than {self.seconds:g} seconds and was stopped. {self.advice}")


def in_one_thread(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work(*arguments)`, run in the thread in which all work is done.

    A server has many threads, and libraries keep threads and memory for each one that ever computed.

    Raises:
        gradio.Error: the work's own; for any other error, which goes to the log, a general one.
    """
    try:
        return _WORKER.submit(contextvars.copy_context().run, work, *arguments).result()
    except gr.Error:
        raise
    except Exception:
        _LOG.exception("a request failed")
        raise refusal("This did not work. The page's log says why; please report it.") from None


@lru_cache(maxsize=1)
def own_folder() -> Path:
    """The folder of this process's uploads, results and work: made when first asked for, removed with the process.

    Gradio is set to use it, too. It lies in the folder that Gradio was set to before, or with temporary files.
    """
    parent = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    folder = server_folder(parent, "hf_efficient_space_")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")  # what a request makes lies elsewhere, and is copied
    return folder


def guarded(demo: gr.Blocks, *components: Any) -> gr.Blocks:
    """The page, with files deleted in time, and inputs passed on as sent: its functions check them.

    Gradio's own checks compare without looking at types, and open images before anything is known of them.
    """
    for component in components:
        component.preprocess = lambda payload: payload
    stock = demo.preprocess_data

    async def unchecked(block_fn: Any, inputs: list[Any], *others: Any, **named: Any) -> Any:
        if any("://" in path for path in _paths_in(inputs)):  # Gradio would fetch it, however large it is
            raise refusal("Send the file itself, not its address.")
        try:
            return await stock(block_fn, inputs, *others, **named)
        except gr.Error:
            raise
        except Exception:  # another number of arguments, another type, a file that was not uploaded
            raise refusal("This request does not have the form that the page sends. See its API page.") from None

    demo.preprocess_data = unchecked  # type: ignore[method-assign]
    forget_files(demo)
    return demo


def forget_files(demo: gr.Blocks, seconds: float = KEEP_SECONDS) -> None:
    """From now on delete files in `own_folder` that are older than `seconds`.

    Files that the page itself shows stay, and those of requests that wait or are worked on.
    """
    page = weakref.ref(demo)

    def run() -> None:
        while (shown_now := page()) is not None:
            try:
                sweep(own_folder(), seconds, in_use(shown_now))
            except Exception:  # the next round has to come
                _LOG.exception("files could not be deleted")
            del shown_now
            time.sleep(max(0.2, min(60, seconds / 4)))

    threading.Thread(target=run, name="forget files", daemon=True).start()


def in_use(demo: gr.Blocks) -> set[str]:
    """Paths that the page shows from the start, and those of requests that wait or are worked on."""
    paths = set().union(*(getattr(block, "keep_in_cache", ()) for block in list(demo.blocks.values())))
    for event in events(demo):
        paths |= set(_paths_in(getattr(event.data, "data", None)))
    return paths


def _paths_in(data: object) -> Iterable[str]:
    left = [data]  # no recursion: a client may nest as deep as it likes
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if isinstance(part.get("path"), str):
                yield part["path"]
            left.extend(part.values())
        elif isinstance(part, (list, tuple)):
            left.extend(part)


def launch_options(app: str, hue: str, largest_upload: int) -> dict[str, Any]:
    """Options of `launch`: the style of our pages, and limits of a request.

    Args:
        app: file of the page; a `style.css` beside it goes with the sheet that all pages share.
        hue: of its buttons.
        largest_upload: bytes of a file; other requests hold a question and some numbers.
    """
    own_folder()  # before the page's components ask where their files go
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # none is downloaded
    return {
        "theme": gr.themes.Soft(primary_hue=hue, neutral_hue="slate", font=fonts[0], font_mono=fonts[1]),
        "css_paths": [SHARED_STYLE, *Path(app).parent.glob("style.css")],
        "max_file_size": largest_upload,
        "app_kwargs": {"middleware": [Middleware(LimitedBodies, largest_upload=largest_upload)]},
    }


class LimitedBodies:
    """Middleware that reads no more of a request's body than it may have, and answers 413 to a larger one.

    Args:
        app: the application that it wraps.
        largest_upload: bytes of a file.
    """

    def __init__(self, app: ASGIApp, largest_upload: int) -> None:
        self.app, self.largest_upload = app, largest_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        left = LARGEST_REQUEST
        if scope["path"].rstrip("/").endswith("/upload"):
            left += self.largest_upload
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > left:
            await _too_large(send)
            return
        started = False

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            return message if left >= 0 else {"type": "http.disconnect"}

        async def noted(message: Message) -> None:
            nonlocal started
            if left >= 0 or started:
                started = True
                await send(message)

        try:
            await self.app(scope, limited, noted)
        except Exception:
            if left >= 0:
                raise
        if left < 0 and not started:
            await _too_large(send)


async def _too_large(send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": b"The request is too large."})
