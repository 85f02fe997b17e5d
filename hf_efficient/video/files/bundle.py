"""The bundle: one folder with everything that is sent for a video. docs/stdo.md specifies it for other players."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_efficient.files import Contents
from hf_efficient.reading import Fields
from hf_efficient.video.geometry import Geometry
from hf_efficient.video.networks.experts import CONFIG_NAME, DELTA_NAME, WEIGHTS_NAME, load_config

from .fit_record import check_fit_record
from .manifest import (
    FORMAT,
    LOW_RESOLUTION,
    MANIFEST_NAME,
    MODEL_FOLDER,
    SHORT_DIGEST,
    BundleError,
    checked_files,
    read_manifest,
    sha256,
    source_from_json,
)
from .reader import REFUSE, StrPath, VideoInfo, probe

DIGEST = rf"[0-9a-f]{{{SHORT_DIGEST}}}([0-9a-f]{{32}})?"
BUNDLE = Contents(
    "bundle", MANIFEST_NAME, lambda record: record.get("format") == FORMAT,
    (LOW_RESOLUTION.pattern, r"(bundle|fit|model_index)\.json", r"README\.md", MODEL_FOLDER,
     rf"{MODEL_FOLDER}/({'|'.join(map(re.escape, (CONFIG_NAME, WEIGHTS_NAME, DELTA_NAME)))})"),
)  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Args:
        path: the folder.
        manifest: bundle.json.
        source: the properties of the high-resolution video, which players restore.
        opened: identity of each checked file, by which a replaced one is recognized.
    """

    path: Path
    manifest: dict[str, Any]
    source: VideoInfo
    opened: dict[str, tuple[int, ...]]

    def __repr__(self) -> str:
        s = self.source
        return f"Bundle({str(self.path)!r}, {s.width}x{s.height}, {s.frames} frames, {self.kilobits:.0f} kbit/s)"

    @property
    def low_resolution(self) -> Path:
        """The low-resolution video, with the sound and subtitles of the source."""
        return self.path / self.manifest["low_resolution"]

    @property
    def model(self) -> Path:
        """The folder of the networks."""
        return self.path / MODEL_FOLDER

    @property
    def geometry(self) -> Geometry:
        """The grid of the routing map."""
        config = load_config(self.model)
        return Geometry(self.source.width, self.source.height, config.scale, config.patch_width, config.patch_height)

    def probe_source(self, path: StrPath) -> VideoInfo:
        """Probe the source with the settings of the fit, to read its frames as the fit did.

        Raises:
            BundleError: `path` is another video.
        """
        if sha256(Path(path)) != self.manifest["source"]["sha256"]:
            raise BundleError(f"{str(path)!r} is not the video that {str(self.path)!r} was made from.")
        fit = self.manifest.get("fit", {})
        return probe(path, str(fit.get("alpha", REFUSE)), str(fit.get("interlaced", REFUSE)))

    @property
    def kilobits(self) -> float:
        """Kilobits per second of the files that a player needs."""
        return sum(self.sizes().values()) * 8 / 1000 / self.source.seconds

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that a player needs."""
        checked = {name: file["bytes"] for name, file in self.manifest["files"].items()}
        return checked | {MANIFEST_NAME: (self.path / MANIFEST_NAME).stat().st_size}

    @property
    def is_delta(self) -> bool:
        """Whether a delta to a general network is sent, and not weights."""
        return (self.model / DELTA_NAME).is_file()

    @classmethod
    def open(cls, path: StrPath) -> Bundle:
        """Open a bundle and check every file that a player reads.

        Raises:
            BundleError: the folder is not a bundle or of a newer format, or a file is absent, changed or inconsistent.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        try:
            fields = Fields(manifest, MANIFEST_NAME)
            source = source_from_json(fields["source"])
            low, files = fields.text("low_resolution", LOW_RESOLUTION.pattern), fields.fields("files")
            if set(files.values) not in [set(checked_files(low, name)) for name in (WEIGHTS_NAME, DELTA_NAME)]:
                raise ValueError("it does not name the files of a bundle")
            listed = {name: files.fields(name) for name in files.values}
            expected = {name: (f.whole("bytes"), f.text("sha256", DIGEST)) for name, f in listed.items()}
            experts = check_fit_record(fields)
        except ValueError as error:
            raise BundleError(f"{folder / MANIFEST_NAME} is damaged: {error}") from error
        opened = {name: _stamp(folder / name) for name in expected}
        for name, (size, digest) in expected.items():
            file = folder / name
            if not file.is_file():
                raise BundleError(f"{file} is missing: copy the bundle as a whole.")
            if file.stat().st_size != size or not sha256(file).startswith(digest):
                raise BundleError(f"{file} is not the file that the bundle was made with: copy the bundle again.")
        bundle = cls(folder, manifest, source, opened)
        bundle._check_networks(experts)
        bundle._check_low_resolution()
        return bundle

    def check_unchanged(self) -> None:
        """Make sure that the files are still those that were opened.

        Raises:
            BundleError: the bundle was replaced or deleted since it was opened.
        """
        for name, stamp in self.opened.items():
            file = self.path / name
            if _stamp(file) != stamp and not (
                file.is_file() and sha256(file).startswith(self.manifest["files"][name]["sha256"])
            ):
                raise BundleError(f"{self.path} was replaced while it was read: open it again.")

    def _check_networks(self, experts: int | None) -> None:
        """Raise if bundle.json describes another number of networks than there are."""
        try:
            config = load_config(self.model)
        except ValueError as error:
            raise BundleError(str(error)) from error
        if experts is not None and experts != config.num_experts:
            raise BundleError(
                f"{self.path / MANIFEST_NAME} is damaged: experts describes {experts} networks, expected "
                f"{config.num_experts}, which {self.model / CONFIG_NAME} has. Copy the bundle again."
            )

    def _check_low_resolution(self) -> None:
        try:
            low, geometry = probe(self.low_resolution), self.geometry
        except ValueError as error:
            raise BundleError(str(error)) from error
        if (low.width, low.height) != (geometry.lr_width, geometry.lr_height):
            raise BundleError(
                f"{self.low_resolution} is {low.width}x{low.height}; a source of {self.source.width}x"
                f"{self.source.height} at scale {geometry.scale} needs {geometry.lr_width}x{geometry.lr_height}."
            )


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
