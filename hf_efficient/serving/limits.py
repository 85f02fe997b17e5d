"""What a server takes from a client, and how it says no. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hf_efficient.checks import check_whole

MEGABYTE = 1_000_000


class Refused(Exception):
    """A request that is not served. The message is a sentence for the client.

    Attributes:
        status: of HTTP, 4xx; 503 where the server has too much to do.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may hold, and how many may wait.

    Args:
        max_pictures: pictures of a request.
        max_videos: videos of a request.
        max_frames: frames that are taken of a video, evenly over its length.
        max_media_mb: megabytes of a picture or video, as a file.
        max_megapixels: of a picture, or of a frame of a video.
        max_body_mb: megabytes of a request.
        max_waiting: requests that wait or run.
        allow_remote: whether pictures and videos are fetched from http:// and https:// URLs.
        allow_files: folder below which file:// URLs are read; None reads none.

    Raises:
        ValueError: a number is out of range, or the folder does not exist.
    """

    max_pictures: int = field(default=16, metadata={"help": "Pictures of a request."})
    max_videos: int = field(default=2, metadata={"help": "Videos of a request."})
    max_frames: int = field(default=32, metadata={"help": "Frames that are taken of a video."})
    max_media_mb: int = field(default=20, metadata={"help": "Megabytes of a picture or video."})
    max_megapixels: int = field(default=40, metadata={"help": "Megapixels of a picture or of a frame."})
    max_body_mb: int = field(default=64, metadata={"help": "Megabytes of a request."})
    max_waiting: int = field(default=256, metadata={"help": "Requests that wait or run."})
    allow_remote: bool = field(default=False, metadata={"help": "Fetch pictures from http:// and https:// URLs."})
    allow_files: Path | None = field(default=None, metadata={"help": "Folder below which file:// URLs are read."})

    def __post_init__(self) -> None:
        for name in ("max_pictures", "max_videos"):
            check_whole(name, getattr(self, name), 0, 10_000)
        for name in ("max_frames", "max_media_mb", "max_megapixels", "max_body_mb", "max_waiting"):
            check_whole(name, getattr(self, name), 1, 10_000)
        if self.allow_files is not None and not self.allow_files.is_dir():
            raise ValueError(f"allow_files={str(self.allow_files)!r} is not a folder; give one that exists.")

    @property
    def media_bytes(self) -> int:
        """`max_media_mb` in bytes."""
        return self.max_media_mb * MEGABYTE

    @property
    def body_bytes(self) -> int:
        """`max_body_mb` in bytes."""
        return self.max_body_mb * MEGABYTE

    @property
    def pixels(self) -> int:
        """`max_megapixels` in pixels."""
        return self.max_megapixels * 1_000_000
