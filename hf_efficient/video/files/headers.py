"""Properties of a video stream that PyAV does not show, read from a Matroska header that is made of the stream."""

from __future__ import annotations

import io
import re
from typing import Any

from hf_efficient.extras import extra

with extra("video"):
    import av

# Codecs whose standard sites chroma in the center, though Matroska's header may not say so.
CENTERED = ("theora", "vp3", "vp4", "mjpeg", "mjpegb", "amv", "thp", "sp5x", "webp")
SITING = re.compile(rb"\x55\xb7\x81.\x55\xb8\x81.", re.DOTALL)  # ChromaSitingHorz and Vert
CROPPING = re.compile(rb"(\x54[\xaa\xbb\xcc\xdd][\x81-\x84].{1,4}){1,4}", re.DOTALL)  # PixelCropBottom, Top, ...


def matroska_header(stream: Any) -> bytes:
    """The Matroska header of an input stream; empty where Matroska has no name for its codec, or PyAV no encoder."""
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as container:
            container.add_stream_from_template(stream)
            container.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return b""
    return header.getvalue()


def gives_chroma_siting(stream: Any) -> bool:
    """Whether a stream's container or codec gives the siting of its chroma."""
    if stream.container.format.name == "yuv4mpegpipe" or stream.codec_context.codec.canonical_name in CENTERED:
        return True
    return SITING.search(matroska_header(stream)) is not None


def is_cropped(stream: Any) -> bool:
    """Whether the container asks players to cut borders off the decoded frames."""
    return CROPPING.search(matroska_header(stream)) is not None
