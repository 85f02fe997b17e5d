"""Remuxing: sound, subtitles, fonts, covers, flags, tags and chapters are copied; what could not be copied is found."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from hf_efficient.extras import extra

from .containers import MediaError, StrPath, input_container, is_cover, open_media, video_stream

with extra("video"):
    import av

MATROSKA = ("matroska", "webm")
# Tags that muxers write about the file itself
OWN_TAGS = (
    "encoder", "duration", "major_brand", "minor_version", "compatible_brands", "bps", "number_of_frames",
    "number_of_bytes", "source_id", "software",
)  # fmt: skip
# Tags of a track in MP4 that are made up by default, or repeat those of the file
REPEATED = ("handler_name", "vendor_id", "creation_time", "stereo_mode")  # the last: `SideData.stereo`
LAYERS = ("mp1", "mp2", "mp3")  # of MPEG audio, for which MP4 has one name
COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}


def copyable_streams(container: Any) -> list[Any]:
    """Sound and subtitles whose codec FFmpeg knows."""
    return [s for s in container.streams if s.type in ("audio", "subtitle") and s.codec_context is not None]


class Remuxer:
    """Copies packets of sound and subtitles from one container to another, in step with the video.

    Args:
        source: the file to copy from.
        target: PyAV's container for writing.
        video: its video stream, which gets the flags and tags of the source's.
        path: of the target, for messages.

    Raises:
        MediaError: the target cannot hold the sound or the subtitles.
    """

    def __init__(self, source: StrPath, target: Any, video: Any, path: Path) -> None:
        self.path, self.target = path, target
        self.source = input_container(source)
        self.matroska = target.format.name in MATROSKA
        self.streams: dict[int, Any] = {}
        try:
            target.metadata.update(tags(self.source.metadata))
            main = video_stream(self.source, source)
            video.metadata.update(track_tags(main))
            video.disposition = int(main.disposition)
            for stream in copyable_streams(self.source):
                self.streams[stream.index] = self._twin(stream)
            for stream in self.source.streams:
                if is_cover(stream):
                    self._add_cover(stream)
                elif stream.type == "attachment" and self.matroska:
                    target.add_stream_from_template(stream)
            chapters = self.source.chapters()
            if chapters:
                target.set_chapters(chapters)
        except BaseException:
            self.close()
            raise
        self.packets = self.source.demux([self.source.streams[i] for i in self.streams]) if self.streams else iter(())
        self.waiting: Any = None

    def _twin(self, stream: Any) -> Any:
        # the FFmpeg decoder's name may differ from the codec's (libdav1d, mp3float)
        codec = stream.codec_context.codec.canonical_name
        if codec not in self.target.supported_codecs:
            kind, lossless = {"audio": ("a", "flac")}.get(stream.type, ("s", "srt"))
            other = "" if self.matroska else "write to a .mkv file, or "
            if codec == "mov_text":  # MP4's own
                other = "write to a .mp4 file, or "
            raise MediaError(
                f"{self.path.suffix!r} files cannot hold the source's {stream.type} ({stream.codec_context.name}): "
                f"{other}convert it first (ffmpeg -i FILE -map 0 -c copy -c:{kind} {lossless} NEW.mkv)."
            )
        twin = self.target.add_stream_from_template(stream)
        twin.metadata.update(track_tags(stream))
        twin.disposition = int(stream.disposition)
        return twin

    def _add_cover(self, stream: Any) -> None:
        """Copy a cover image: Matroska has it as an attachment, MP4 as a stream of one packet."""
        kind = COVERS.get(stream.codec_context.codec.canonical_name) if stream.codec_context else None
        if kind is None:
            return
        if not self.matroska:
            self.streams[stream.index] = self._twin(stream)
            return
        with input_container(self.source.name.removeprefix("file:")) as again:
            data = next((bytes(p) for p in again.demux(again.streams[stream.index]) if p.size), b"")
        name, mime = stream.metadata.get("filename", kind[0]), stream.metadata.get("mimetype", kind[1])
        self.target.add_attachment(name, mime, data)

    def copy_until(self, seconds: Fraction | None) -> None:
        """Copy the packets that start before or at `seconds`; None: all the rest."""
        while True:
            packet = self.waiting or next(self.packets, None)
            self.waiting = None
            if packet is None:
                return
            if packet.size == 0:  # the flushing packet at the end
                continue
            if packet.dts is None:
                packet.dts = packet.pts
            if seconds is not None and packet.dts is not None and packet.dts * packet.time_base > seconds:
                self.waiting = packet
                return
            packet.stream = self.streams[packet.stream.index]
            self.target.mux(packet)

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def tags(metadata: dict[str, str]) -> dict[str, str]:
    """The tags that describe the content, not the file."""
    return {
        k: v
        for k, v in metadata.items()
        if k.lower() not in OWN_TAGS
        and not k.lower().startswith("_statistics")
        and not v.startswith("1970-01-01T00:00:00")
    }


def track_tags(stream: Any) -> dict[str, str]:
    """The tags of a track. FFmpeg reads MP4's title as "name", but writes it from "title"."""
    found = tags(stream.metadata)
    return {**({"title": found.pop("name")} if "name" in found else {}), **found}


def not_kept(source: StrPath, output: StrPath) -> list[str]:
    """What a source carries besides its frames and an output does not, in words."""
    with open_media(source) as container:
        before = dict(_carried(container, source))
    with open_media(output) as container:
        after = dict(_carried(container, output))
    return [f"{what} ({value})" for what, value in before.items() if value and after.get(what) != value]


def _carried(container: Any, path: StrPath) -> Iterator[tuple[str, str]]:
    """Names and values of everything that a container has beside its frames."""
    main, counts = video_stream(container, path), dict[str, int]()
    for stream in container.streams:
        cover = is_cover(stream)
        kind = "cover image" if cover else {"data": "data track", "subtitle": "subtitles", "audio": "sound"}.get(
            stream.type, stream.type)  # fmt: skip
        counts[kind] = counts.get(kind, 0) + 1
        name = "video" if stream is main else f"{kind} {counts[kind]}"
        if stream.type == "attachment":
            yield f"attached file {counts[kind]}", f"{stream.name}, {len(stream.data)} bytes"
        elif stream.type == "data":
            if stream.name != "none" and (stream.metadata.get("timecode") is None):
                yield name, str(stream.name or "unknown")
        else:
            if stream is not main:
                codec = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown codec"
                yield name, "MPEG audio" if codec in LAYERS else codec
            if not cover:  # a cover is named by its container
                yield f"flags of {name}", _flags(stream)
                said = {k: v for k, v in track_tags(stream).items() if v != "und" and k.lower() not in REPEATED}
                yield from ((f"{k.lower()} of {name}", v) for k, v in sorted(said.items()))
    for n, chapter in enumerate(container.chapters()):
        start = float(chapter["start"] * chapter["time_base"])
        yield f"chapter {n + 1}", f"{chapter['metadata'].get('title', '')} at {start:.2f} s"
    yield from ((f"tag {k.lower()}", v) for k, v in sorted(tags(container.metadata).items()))


def _flags(stream: Any) -> str:
    return ", ".join(flag.name for flag in av.stream.Disposition if flag & stream.disposition and flag.name)
