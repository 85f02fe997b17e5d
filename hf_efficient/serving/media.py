"""Pictures and videos that a request names: their bytes out of a URL, and pixels out of the bytes."""

from __future__ import annotations

import base64
import binascii
import io
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageOps

from hf_efficient.images import FORMATS, ImageError, told
from hf_efficient.reading import shown

from .limits import Limits, Refused

FETCH_SECONDS = 20.0
_CHUNK = 1 << 16


def picture_of(url: object, limits: Limits) -> Image.Image:
    """The picture of a URL in RGB, turned as its camera was held.

    Raises:
        Refused: the URL is not read here, or what it gives is not a picture within the limits.
    """
    raw = bytes_of(url, "picture", limits)
    try:
        with told(limits.pixels), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is looked at first
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                if image.width * image.height > limits.pixels:
                    raise Refused(
                        f"A picture has {image.width} x {image.height} pixels; this server takes "
                        f"{limits.max_megapixels} megapixels. Scale it down.",
                        413,
                    )
                return ImageOps.exif_transpose(image).convert("RGB")
    except ImageError as error:
        raise Refused(f"A picture cannot be read: {error}") from error


def bytes_of(url: object, kind: str, limits: Limits) -> bytes:
    """What a URL holds: data: always, http(s): and file: where the limits allow it.

    Args:
        url: as the request has it.
        kind: "picture" or "video", for messages.
        limits: of the server.

    Raises:
        Refused: no such URL, not allowed, not base64, too many bytes, or nothing that can be read.
    """
    if not isinstance(url, str) or not url:
        raise Refused(f"The URL of a {kind} is {shown(url)}; expected a data: URL with base64.")
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _decoded(url, kind, limits)
    if scheme == "file":
        return _read(url, kind, limits)
    if scheme in ("http", "https"):
        return _fetched(url, kind, limits)
    raise Refused(f"The URL of a {kind} begins with {shown(url[:40])}; expected data:..;base64,... .")


def _decoded(url: str, kind: str, limits: Limits) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Refused(f"The data: URL of a {kind} is not base64; expected data:TYPE;base64,... .")
    _check_size(len(body) * 3 // 4 - 2, kind, limits)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"The base64 of a {kind} is wrong: {error}.") from error


def _read(url: str, kind: str, limits: Limits) -> bytes:
    if limits.allow_files is None:
        raise Refused(f"A {kind} is named by a file: URL, which this server does not read. Send it as a data: URL.")
    allowed = limits.allow_files.resolve()
    try:
        path = Path(unquote(urlsplit(url).path)).resolve()
        if not path.is_relative_to(allowed) or not path.is_file():
            raise Refused(f"The file of a {kind} is not below the folder that this server reads.")
        with path.open("rb") as file:
            raw = file.read(limits.media_bytes + 1)
    except (OSError, ValueError) as error:
        raise Refused(f"The file of a {kind} cannot be read.") from error
    _check_size(len(raw), kind, limits)
    return raw


def _fetched(url: str, kind: str, limits: Limits) -> bytes:
    if not limits.allow_remote:
        raise Refused(f"A {kind} is named by an http: URL, which this server does not fetch. Send it as a data: URL.")
    opener = urllib.request.OpenerDirector()  # no file: and no ftp:, to which a server might lead on
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    end, raw = time.monotonic() + FETCH_SECONDS, bytearray()
    try:
        with opener.open(url, timeout=FETCH_SECONDS) as response:
            while part := response.read1(_CHUNK):
                raw += part
                _check_size(len(raw), kind, limits)
                if time.monotonic() > end:
                    raise Refused(f"The {kind} was not fetched within {FETCH_SECONDS:.0f} seconds.")
    except Refused:
        raise
    except Exception as error:  # of sockets, TLS, HTTP and of URLs that are none
        raise Refused(f"The {kind} cannot be fetched: {shown(str(error))}.") from error
    return bytes(raw)


def _check_size(size: int, kind: str, limits: Limits) -> None:
    if size > limits.media_bytes:
        raise Refused(f"A {kind} has more than {limits.max_media_mb} megabytes, what this server takes.", 413)
