"""bundle.json: what it says of a bundle, written and read. docs/stdo.md specifies it for other players."""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from hf_efficient.files import write_text
from hf_efficient.reading import NOT_PRINTED, Fields, is_whole, read_json, shown
from hf_efficient.video.networks.spec import CONFIG_NAME, DELTA_NAME, WEIGHTS_NAME

from .reader import MAX_PIXELS, ColorTags, VideoInfo
from .side_data import SideData

MANIFEST_NAME, MODEL_FOLDER = "bundle.json", "model"
# Version 2 is a bundle with a delta: short, and what no player needs stands in RECORD_NAME, which need not be sent.
FORMAT, VERSION, SHORT_VERSION, RECORD_NAME = "hf_efficient.stdo", 1, 2, "fit.json"
# Version of `color.py`, on which depends what networks learn. docs/stdo.md has 2; 1 did not interpolate chroma.
CONVERSION = 2
LOW_RESOLUTION = re.compile(r"low_resolution\.(mp4|mkv)")
LARGEST_MANIFEST = 1 << 20
SHA256 = r"[0-9a-f]{64}"
SHORT_DIGEST = 32  # digits of it that a short bundle.json gives
# The source's fields in a short bundle.json that are left out at these values.
USUAL: dict[str, Any] = {
    "name": "", "sha256": "0" * 64, "bytes": 0, "pixel_format": "yuv420p", "pixel_aspect": "0", "color": [2, 2, 2, 0],
    "rotation": 0, "container": "mov,mp4,m4a,3gp,3g2,mj2", "other_streams": [], "side": {},
}  # fmt: skip
OF_FILE = ("name", "sha256", "bytes")  # fields of the source that no player needs
EXTRA = ("fit", "experts", "general_patch_psnr", "compared", "candidates")  # fields of bundle.json that no player needs
PIPELINE = {"_class_name": "STDOPipeline", "_diffusers_version": "0.42.1", "model": ["hf_efficient", "STDOModel"]}


class BundleError(ValueError):
    """A folder that is not a bundle, or a damaged one. The message names the file and the fault."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """bundle.json of a folder.

    Raises:
        BundleError: the folder or the file is missing, or the file is damaged, of another format or conversion.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        what = "is a file, and a bundle is a folder" if folder.is_file() else "is missing: there is no such folder"
        raise BundleError(f"{str(folder)!r} {what}.")
    if not path.is_file():
        raise BundleError(
            f"{str(folder)!r} is not a bundle: it has no {MANIFEST_NAME}. Make one with hf-efficient stdo encode."
        )
    try:
        manifest = read_json(path, LARGEST_MANIFEST)
    except ValueError as error:
        raise BundleError(str(error)) from error
    if manifest.get("format") != FORMAT:
        raise BundleError(f"{path} does not describe a bundle: its format is not {FORMAT!r}.")
    if manifest.get("version") not in (VERSION, SHORT_VERSION):
        version = shown(manifest.get("version"))
        raise BundleError(
            f"{path} has version {version}; this player knows {VERSION} and {SHORT_VERSION}. Upgrade hf_efficient."
        )
    _check_conversion(path, manifest.get("conversion", 1))
    return _with_record(folder, manifest) if manifest["version"] == SHORT_VERSION else manifest


def _with_record(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """A short bundle.json with its usual values, and with the record of the fit if it is there."""
    try:
        record = read_json(folder / RECORD_NAME, LARGEST_MANIFEST) if (folder / RECORD_NAME).is_file() else {}
    except ValueError as error:
        raise BundleError(str(error)) from error
    manifest = {**manifest, **{name: record[name] for name in EXTRA if name in record}}
    if isinstance(manifest.get("source"), dict):
        named = record.get("source")
        own = {name: named[name] for name in OF_FILE if name in named} if isinstance(named, dict) else {}
        manifest["source"] = {**USUAL, **manifest["source"], **own}
    return manifest


def _check_conversion(path: Path, conversion: object) -> None:
    if conversion == CONVERSION:
        return
    older = isinstance(conversion, int) and conversion < CONVERSION
    raise BundleError(
        f"{path} was made with conversion {shown(conversion)} between YUV and RGB; this player has {CONVERSION}, and "
        "networks learn to undo the errors of the conversion. "
        + ("The old one was darker by 1.3 of 255. Encode the video again." if older else "Upgrade hf_efficient.")
    )


def checked_files(low_resolution: str, weights: str = WEIGHTS_NAME) -> list[str]:
    """The files that a player reads, relative to the bundle."""
    return [low_resolution, f"{MODEL_FOLDER}/{CONFIG_NAME}", f"{MODEL_FOLDER}/{weights}"]


def write_manifest(folder: Path, low_resolution: str, source: dict[str, Any], **extra: Any) -> None:
    """Write bundle.json for the files in `folder`, and model_index.json, by which diffusers knows the pipeline."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in checked_files(low_resolution)
    }
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, "conversion": CONVERSION}
    manifest |= {"source": source, "low_resolution": low_resolution}
    write_text(folder / "model_index.json", json.dumps(PIPELINE, indent=2) + "\n")
    write_text(folder / MANIFEST_NAME, json.dumps({**manifest, "files": files, **extra}, indent=2) + "\n")


def write_short_manifest(folder: Path, low_resolution: str, source: dict[str, Any], **extra: Any) -> None:
    """As `write_manifest`, for a bundle with a delta: every byte of it counts against what the delta gains."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)[:SHORT_DIGEST]}
        for name in checked_files(low_resolution, DELTA_NAME)
    }
    short = {name: value for name, value in source.items() if name not in OF_FILE and USUAL.get(name) != value}
    manifest = {"format": FORMAT, "version": SHORT_VERSION, "conversion": CONVERSION, "source": short}
    manifest |= {"low_resolution": low_resolution, "files": files}
    record = {"source": {name: source[name] for name in OF_FILE}, **extra}
    write_text(folder / "model_index.json", json.dumps(PIPELINE, indent=2) + "\n")
    write_text(folder / RECORD_NAME, json.dumps(record, indent=1) + "\n")
    write_text(folder / MANIFEST_NAME, json.dumps(manifest, separators=(",", ":")) + "\n")


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_to_json(info: VideoInfo, path: Path, frames: int) -> dict[str, Any]:
    """What a player needs to restore the source, and name, size and checksum of its file."""
    return {
        "name": re.sub(NOT_PRINTED, "?", path.name),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "frames": frames,
        "seconds": info.seconds,
        "width": info.width,
        "height": info.height,
        "pixel_format": info.pixel_format,
        "rate": str(info.rate),
        "time_base": str(info.time_base),
        "pixel_aspect": str(info.pixel_aspect),
        "color": [info.color.space, info.color.primaries, info.color.transfer, info.color.range],
        "rotation": info.rotation,
        "container": info.container,
        "other_streams": list(info.other_streams),
        "side": info.side.to_json(),
    }


def source_from_json(values: object) -> VideoInfo:
    """The inverse of `source_to_json`.

    Raises:
        ValueError: a field is absent, of another type or out of range; the message names it.
    """
    fields = Fields(values, "source")

    def fraction(name: str) -> Fraction:
        return Fraction(fields.text(name, r"\d{1,10}(/0*[1-9]\d{0,9})?"))

    width, height = fields.whole("width", 1, MAX_PIXELS), fields.whole("height", 1, MAX_PIXELS)
    if width * height > MAX_PIXELS:
        raise ValueError(f"source: frames of {width}x{height} pixels, expected at most {MAX_PIXELS}")
    if min(fraction("rate"), fraction("time_base")) <= 0:
        raise ValueError("source: rate and time base must be positive")
    tags = fields.items("color", 4)
    if len(tags) != 4 or not all(is_whole(tag) and 0 <= tag <= 255 for tag in tags) or tags[3] > 2:
        raise fields.wrong("color", "four numbers, the last from 0 to 2")
    fields.text("name"), fields.text("sha256", SHA256), fields.whole("bytes")
    streams = [
        Fields({"other_streams": stream}, "source").text("other_streams") for stream in fields.items("other_streams")
    ]
    return VideoInfo(
        width, height, fields.text("pixel_format", r"[a-z0-9_]{1,40}"), fraction("rate"), fraction("time_base"),
        fraction("pixel_aspect"), ColorTags(*tags), fields.whole("rotation", -360, 360),
        fields.whole("frames", 1, 2**31), fields.number("seconds", 1e-6, 1e9), fields.text("container"),
        tuple(streams), side=SideData.from_json(fields.values.get("side", {})),
    )  # fmt: skip
