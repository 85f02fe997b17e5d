"""Writing video files: RGB frames, with the time stamps, tags, sound and subtitles of a source; whole or not at all."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hf_efficient.extras import extra
from hf_efficient.files import ffmpeg_url, full_disk, written_whole
from hf_efficient.video.codecs import CODECS

from .color import FromRGB
from .containers import WRITTEN, MediaError, StrPath
from .reader import VideoInfo, carried_side_data
from .remuxing import Remuxer, not_kept
from .side_data import NOTHING
from .threads import same_scheduling

with extra("video"):
    import av


class VideoWriter:
    """Encodes frames into a file, which appears under its name when the context ends without an error.

    Args:
        path: the new file; its suffix chooses the container.
        like: the video whose rate, time base, pixel aspect, color tags and rotation are kept.
        size: (width, height) of the frames written.
        codec: FFmpeg's encoder.
        pixel_format: of the frames that the encoder gets.
        options: of the encoder.
        copy_from: file whose sound, subtitles, fonts, covers, flags, chapters and tags are copied, packet by packet. A
            warning names what the new file does not keep of it.

    Raises:
        MediaError: the container cannot hold a stream, or the encoder refuses its settings.
    """

    def __init__(
        self,
        path: StrPath,
        like: VideoInfo,
        size: tuple[int, int],
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        options: dict[str, str] | None = None,
        copy_from: StrPath | None = None,
    ) -> None:
        self.path, self.like, self.size, self.copy_from = Path(path), like, size, copy_from
        self._draft = written_whole(self.path)
        self.container: Any = None
        self.remuxer: Remuxer | None = None
        self._opened = False
        try:
            self._open()
            self._add_video(codec, pixel_format, options or {})
            if copy_from is not None:
                self.remuxer = Remuxer(copy_from, self.container, self.stream, self.path)
        except BaseException as error:
            self._abandon(error)
            if isinstance(error, (av.error.FFmpegError, ValueError)) and not isinstance(error, MediaError):
                raise MediaError(f"Cannot write {codec} in {pixel_format} to {str(path)!r}: {error}") from error
            raise

    def _open(self) -> None:
        mp4 = self.path.suffix.lower() in (".mp4", ".mov", ".m4v")
        # Matroska files have a random number by themselves: the same frames would give other files
        options = {"movflags": "+faststart"} if mp4 else {"fflags": "+bitexact"}
        if self.path.suffix.lower() in (".mkv", ".webm"):
            options["default_mode"] = "passthrough"  # tracks keep the flags of the source
        try:
            self.temporary = temporary = self._draft.__enter__()
            self.container = av.open(ffmpeg_url(temporary), "w", options=options)
            if self.container.format.name not in WRITTEN:  # a playlist or numbered images: several files
                raise ValueError(f"{self.path.suffix!r} is {self.container.format.name}, which is not one video file")
        except (OSError, av.error.FFmpegError, ValueError) as error:
            if full_disk(error):
                raise
            raise MediaError(
                f"Cannot write {str(self.path)!r}: {error}. Use a folder that exists, and .mp4 or .mkv."
            ) from error

    def _add_video(self, codec: str, pixel_format: str, options: dict[str, str]) -> None:
        like = self.like
        if codec in CODECS and self.size[0] < CODECS[codec].narrowest:
            raise ValueError(f"{self.size[0]} pixels across; {codec} is given {CODECS[codec].narrowest} or more")
        self.encodable = FromRGB(pixel_format, like.color.matrix(like.height), like.color.range)
        rgb = self.encodable.format.is_rgb
        options = {**options, **self.encodable.tags}
        for name, value in like.side.options(codec).items():
            options[name] = ":".join(filter(None, [options.get(name), value]))
        if codec.startswith("libx264") and _has_avx512():
            # x264's AVX-512 code of macroblock trees reads uninitialized memory: the same frames give other files
            options = {**options, "x264-params": ":".join(filter(None, [options.get("x264-params"), "asm=AVX2"]))}
        if codec == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only; else it prints its settings for every file
        # MPEG time bases and frame rates have 16 or 31 bits: finer ones are rounded by the encoders themselves
        self.stream = self.container.add_stream(codec, rate=like.rate.limit_denominator(100_000), options=options)
        context = self.stream.codec_context
        context.width, context.height = self.size
        context.pix_fmt = pixel_format
        context.time_base = self.stream.time_base = like.time_base
        context.thread_count = 2  # a fixed number: x264's choices depend on it
        if like.pixel_aspect:
            context.sample_aspect_ratio = self.stream.sample_aspect_ratio = like.pixel_aspect
        context.colorspace = 0 if rgb else like.color.space
        context.color_primaries, context.color_trc = like.color.primaries, like.color.transfer
        context.color_range = 2 if rgb else like.color.range
        if like.side.display_matrix:
            self.stream.set_display_matrix(like.side.display_matrix)
        elif like.rotation:
            self.stream.set_display_rotation(like.rotation)

    def write(self, rgb: np.ndarray, pts: int, duration: int = 0) -> None:
        """Append one frame.

        Args:
            rgb: (H, W, 3) uint8, C-contiguous.
            pts: time stamp in units of `like.time_base`.
            duration: in the same units; 0 is unknown.
        """
        frame = self.encodable(rgb)
        frame.pts, frame.time_base = pts, self.like.time_base
        if duration:
            frame.duration = duration
        try:
            self._mux(self._encode(frame))
            if self.remuxer is not None:
                self.remuxer.copy_until(pts * self.like.time_base)
        except av.error.FFmpegError as error:
            raise self._failed(error) from error

    def _encode(self, frame: Any) -> list[Any]:
        """The packets that are ready; None ends the stream. The first call opens the encoder, which starts threads."""
        with nullcontext() if self._opened and frame is not None else same_scheduling():
            packets: list[Any] = self.stream.encode(frame)
        self._opened = True
        return packets

    def _failed(self, error: Any) -> MediaError:
        """FFmpeg's error about this file; its own text would name the draft."""
        other = "" if self.path.suffix == ".mkv" else ", or write to a .mkv file, which holds more"
        return MediaError(
            f"Cannot write {str(self.path)!r}: {error.strerror or error}. Convert sound and subtitles of the source to "
            f"a usual codec and channel layout first{other}."
        )

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            self.container.mux(packet)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return self._abandon(error)
        try:
            self._mux(self._encode(None))
            if self.remuxer is not None:
                self.remuxer.copy_until(None)
                self.remuxer.close()
            self.container.close()
            missing = not_kept(self.copy_from, self.temporary) if self.copy_from is not None else []
            if self.like.side != NOTHING:
                missing += self.like.side.missing(carried_side_data(self.temporary))
        except BaseException as failure:
            self._abandon(failure)
            if isinstance(failure, av.error.FFmpegError):
                raise self._failed(failure) from failure
            raise
        self._draft.__exit__(None, None, None)
        if missing:
            warnings.warn(f"{str(self.path)!r} does not keep from its source: {'; '.join(missing)}.", stacklevel=2)
        return None

    def _abandon(self, error: BaseException) -> None:
        """Leave no file behind; a full disk is reported as such, whatever error the libraries made of it."""
        if self.remuxer is not None:
            self.remuxer.close()
        if self.container is not None:
            with suppress(av.error.FFmpegError, ValueError, OSError):  # the file is thrown away
                self.container.close()
        self._draft.__exit__(type(error), error, error.__traceback__)


def _has_avx512() -> bool:
    """Whether torch finds AVX-512; False in a player without torch, whose files need not be the same every time."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"
