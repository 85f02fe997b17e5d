"""What files say of a video stream and PyAV does not show: it stands in Matroska's header of the same stream."""

from __future__ import annotations

import io
import re
from typing import Any

from hf_efficient.extras import extra

with extra("video"):
    import av

# Codecs whose chroma lies in the centre by their standard, though Matroska's header may not tell.
CENTRED = ("theora", "vp3", "vp4", "mjpeg", "mjpegb", "amv", "thp", "sp5x", "webp")
SITING = re.compile(rb"\x55\xb7\x81.\x55\xb8\x81.", re.DOTALL)  # ChromaSitingHorz and Vert
CROPPING = re.compile(rb"(\x54[\xaa\xbb\xcc\xdd][\x81-\x84].{1,4}){1,4}", re.DOTALL)  # PixelCropBottom, Top, ...


def matroska_header(stream: Any) -> bytes:
    """Of an input stream; empty where Matroska has no name for its codec, or PyAV no encoder."""
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as container:
            container.add_stream_from_template(stream)
            container.start_encoding()
    except (av.error.FFmpegError, ValueError):
        return b""
    return header.getvalue()


def says_where_chroma_lies(stream: Any) -> bool:
    """Whether a stream says where its chroma lies, by its container or its codec."""
    if stream.container.format.name == "yuv4mpegpipe" or stream.codec_context.codec.canonical_name in CENTRED:
        return True
    return SITING.search(matroska_header(stream)) is not None


def is_cropped(stream: Any) -> bool:
    """Whether a container says to cut borders off the frames that a codec gives."""
    return CROPPING.search(matroska_header(stream)) is not None
