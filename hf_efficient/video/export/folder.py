"""The exported folder, which players without torch read. docs/stdo.md describes it. Without torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_efficient.files import Contents, write_text
from hf_efficient.reading import Fields, read_json, shown
from hf_efficient.video.files.color import FULL_RANGE, LUMA
from hf_efficient.video.files.manifest import (
    CONVERSION,
    LOW_RESOLUTION,
    SHA256,
    BundleError,
    sha256,
    source_from_json,
)
from hf_efficient.video.files.reader import MAX_PIXELS, VideoInfo, probe
from hf_efficient.video.geometry import PATCHES, Geometry
from hf_efficient.video.routing import MOST_EXPERTS

RECORD, FORMAT, VERSION = "export.json", "hf_efficient.stdo.export", 1
NETWORK = r"networks/\d{1,3}\.onnx"
ROUTING, TIMES, ARCHIVE = "routing.bin", "times.bin", "player.pyz"
PAGE = ("index.html", "style.css", "player.js", "worker.js", "colors.js", "tiles.js", "isolated.js", "serve.py")
RUNTIME = "runtime"
EXPORT = Contents(
    "exported bundle", RECORD, lambda record: record.get("format") == FORMAT,
    (*map(re.escape, (RECORD, ROUTING, TIMES, ARCHIVE, *PAGE)), LOW_RESOLUTION.pattern, "networks", NETWORK, RUNTIME,
     rf"{RUNTIME}/[\w.-]+"),
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network as ONNX: its file, receptive radius, and the most pixels that it should enlarge at once."""

    file: str
    radius: int
    tile: int


@dataclass(frozen=True)
class Export:
    """An opened export.

    Args:
        path: the folder.
        record: export.json.
        source: the properties of the high-resolution video, which players restore.
        geometry: the grid of the routing map.
        networks: in the order of the map's numbers.
    """

    path: Path
    record: dict[str, Any]
    source: VideoInfo
    geometry: Geometry
    networks: tuple[Network, ...]

    def __repr__(self) -> str:
        s = self.source
        return f"Export({str(self.path)!r}, {s.width}x{s.height}, {s.frames} frames, {len(self.networks)} networks)"

    @property
    def low_resolution(self) -> Path:
        """The low-resolution video, with the sound and subtitles of the source."""
        return self.path / self.record["low_resolution"]

    def routing(self) -> bytes:
        """The packed map; empty for one network."""
        return (self.path / ROUTING).read_bytes() if len(self.networks) > 1 else b""

    @classmethod
    def open(cls, path: str | Path) -> Export:
        """Open a folder and check every file that a player reads.

        Raises:
            BundleError: it is not an export or of another version, or a file is absent, changed or inconsistent.
        """
        folder = Path(path)
        record = _read_record(folder)
        try:
            fields = Fields(record, RECORD)
            source = source_from_json(fields["source"])
            fields.text("low_resolution", LOW_RESOLUTION.pattern)
            width, height = (fields.whole(name, 1, 8192) for name in ("patch_width", "patch_height"))
            geometry = Geometry(source.width, source.height, _scale(fields), width, height)
            networks = tuple(_network(item) for item in fields.items("networks", MOST_EXPERTS))
            if not networks:
                raise fields.wrong("networks", "one network at least")
            files = fields.fields("files")
            needed = [record["low_resolution"], *(n.file for n in networks), *([ROUTING] if len(networks) > 1 else [])]
            for name in needed:
                entry = files.fields(name)
                _check_file(folder / name, entry.whole("bytes"), entry.text("sha256", SHA256))
            low = probe(folder / record["low_resolution"])
        except ValueError as error:
            raise BundleError(f"{folder / RECORD} does not fit its files: {error}") from error
        if (low.width, low.height) != (geometry.lr_width, geometry.lr_height):
            raise BundleError(
                f"{folder / record['low_resolution']} is {low.width}x{low.height}, expected "
                f"{geometry.lr_width}x{geometry.lr_height}: copy the folder again."
            )
        return cls(folder, record, source, geometry, networks)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise BundleError(
            f"{str(folder)!r} is not an exported bundle: it has no {RECORD}. Make one with hf-efficient stdo export."
        )
    try:
        record = read_json(path)
    except ValueError as error:
        raise BundleError(str(error)) from error
    said = record.get("format"), record.get("version"), record.get("conversion")
    if said != (FORMAT, VERSION, CONVERSION):
        raise BundleError(
            f"{path} has format, version and conversion {shown(said)}; this player knows "
            f"{(FORMAT, VERSION, CONVERSION)!r}. Export the bundle again with this version of hf_efficient."
        )
    return record


def _scale(fields: Fields) -> float:
    scale = fields.number("scale", 1, 4)
    if scale not in PATCHES:
        raise fields.wrong("scale", "one of " + ", ".join(map(str, PATCHES)))
    return int(scale) if scale == int(scale) else scale


def _network(item: object) -> Network:
    fields = Fields(item, f"{RECORD}: networks")
    return Network(fields.text("file", NETWORK), fields.whole("radius", 0, 4096), fields.whole("tile", 1, MAX_PIXELS))


def _check_file(file: Path, size: int, digest: str) -> None:
    if not file.is_file():
        raise BundleError(f"{file.name} is missing: copy the folder as a whole.")
    if file.stat().st_size != size or sha256(file) != digest:
        raise BundleError(f"{file.name} is not the file that was exported: copy the folder again.")


def write_record(
    folder: Path,
    source: dict[str, Any],
    low_resolution: str,
    geometry: Geometry,
    networks: Sequence[Network],
    web: dict[str, Any],
) -> None:
    """Write export.json for the files in `folder`.

    Args:
        folder: holds the stream, the networks and, for several, the map.
        source: the field of bundle.json.
        low_resolution: name of the stream.
        geometry: the grid of the map.
        networks: in the order of the map's numbers.
        web: what the page must know; empty without one.
    """
    names = [low_resolution, *(n.file for n in networks)]
    names += [name for name in (ROUTING, TIMES) if (folder / name).exists()]
    record = {
        "format": FORMAT,
        "version": VERSION,
        "conversion": CONVERSION,
        "source": source,
        "low_resolution": low_resolution,
        "scale": geometry.scale,
        "patch_width": geometry.patch_width,
        "patch_height": geometry.patch_height,
        "networks": [vars(network) for network in networks],
        "color": _decoding(folder / low_resolution),
        **({"web": web} if web else {}),
        "files": {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256(folder / n)} for n in names},
    }
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _decoding(stream: Path) -> dict[str, Any]:
    """How the stream's frames become RGB: luma of red and blue, and whether levels are of full range."""
    info = probe(stream)
    red, blue = LUMA[info.color.matrix(info.height)]
    return {"red": red, "blue": blue, "full_range": info.color.range == FULL_RANGE}
