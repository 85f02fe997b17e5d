"""Play an exported bundle by onnxruntime and PyAV, without torch.

`python -m hf_efficient.video.export FOLDER out.mp4`, or `python FOLDER/player.pyz FOLDER out.mp4`, which needs nothing
but `pip install onnxruntime av numpy`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_efficient.extras import extra
from hf_efficient.files import check_output, locked
from hf_efficient.reading import errors_named
from hf_efficient.video import routing
from hf_efficient.video.codecs import CODECS, check_encoder
from hf_efficient.video.files.manifest import BundleError
from hf_efficient.video.files.outputs import check_no_original, open_output
from hf_efficient.video.files.played import PlayedFrame, played_frames, small_frames
from hf_efficient.video.files.reader import StrPath
from hf_efficient.video.tiles import boxes

from .folder import Export


class OnnxPlayer:
    """An opened export and its networks in onnxruntime, on the CPU.

    Args:
        folder: as `export_bundle` wrote it, or an opened one.
        threads: of a network; None: onnxruntime's choice.

    Raises:
        BundleError: the folder is damaged.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, folder: StrPath | Export, threads: int | None = None) -> None:
        self.export = folder if isinstance(folder, Export) else Export.open(Path(folder))
        self.networks = [_session(self.export.path / n.file, threads) for n in self.export.networks]

    def labels(self) -> Iterator[np.ndarray]:
        """(I, J) network of each patch, frame by frame."""
        g = self.export.geometry
        return routing.unpack(self.export.routing(), g.rows, g.columns, len(self.networks))

    def enlarge(self, lr: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(lr_height, lr_width, 3) uint8 to (height, width, 3) uint8."""
        g = self.export.geometry
        frame = np.divide(lr.transpose(2, 0, 1)[None], 255, dtype=np.float32)
        size, large = lr.shape[:2], g.large
        block = float(g.scale).as_integer_ratio()[1]
        result = np.empty((large(size[0]), large(size[1]), 3), np.uint8)
        for m in np.unique(labels).tolist():
            halo, most = self.export.networks[m].radius, self.export.networks[m].tile
            padded = np.pad(frame, [(0, 0), (0, 0), (halo, halo), (halo, halo)], mode="edge")
            for (top, left, bottom, right), parts in boxes(
                labels, m, halo, most, (g.patch_height, g.patch_width), (size[0], size[1]), block
            ):
                piece = np.ascontiguousarray(padded[..., top : bottom + 2 * halo, left : right + 2 * halo])
                output = self._run(m, piece, (1, 3, large(bottom - top), large(right - left)))
                for y, x, below, after in parts:
                    result[large(y) : large(below), large(x) : large(after)] = output[
                        large(y - top) : large(below - top), large(x - left) : large(after - left)
                    ]
        return np.ascontiguousarray(result[: g.height, : g.width])

    def _run(self, m: int, piece: np.ndarray, expected: tuple[int, ...]) -> np.ndarray:
        """What network m makes of a piece with its border, as levels; its file may be anything."""
        path = self.export.path / self.export.networks[m].file
        with errors_named(path):
            enlarged = self.networks[m].run(["enlarged"], {"frame": piece})[0]
        if enlarged.shape != expected:
            raise BundleError(
                f"{path} makes {enlarged.shape} of {piece.shape}, expected {expected}: copy the folder again."
            )
        return to_levels(enlarged)

    def frames(self, every: int = 1) -> Iterator[PlayedFrame]:
        """The frames in order, with constant memory.

        Args:
            every: yield every `every`-th frame, from the first.

        Raises:
            BundleError: stream or map do not have the source's number of frames.
        """
        export = self.export
        small = small_frames(
            export.path, export.low_resolution, export.source, self.labels(), len(self.networks), every
        )  # fmt: skip
        return played_frames(small, self.enlarge)

    def decode(
        self,
        output: StrPath,
        codec: str = "libx264",
        quality: int | None = None,
        preset: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Path:
        """Write the high-resolution video, as `hf-efficient stdo decode` does.

        Args:
            output: the new file, which appears whole or not at all.
            codec: "libx264", "libx265", "libsvtav1" or "ffv1".
            quality: constant quality of the codec (crf; smaller is better); None: visually lossless.
            preset: of the codec; None: a fast one.
            progress: called with 1 for each frame.

        Raises:
            BundleError, MediaError, ValueError, OSError: as `hf_efficient.video.play.decode.decode`.
        """
        check_encoder(codec, quality, preset)
        export = self.export
        target = check_output(output, "file", [export.path])
        check_no_original(target, export.record["source"])
        with (
            locked(target),
            open_output(target, export.source, codec, quality, preset, export.low_resolution) as writer,
        ):
            for frame in self.frames():
                writer.write(*frame)
                if progress is not None:
                    progress(1)
        return target


def _session(path: Path, threads: int | None) -> Any:
    """A network in onnxruntime."""
    with extra("onnx"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
    with errors_named(path):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def to_levels(x: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] to (H, W, 3) uint8, rounded to nearest."""
    levels = x[0] * np.float32(255)
    levels += np.float32(0.5)
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8).transpose(1, 2, 0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 after an error, which is one line on stderr."""
    parser = argparse.ArgumentParser(prog="player", description="Play an exported bundle to a video file.")
    parser.add_argument("folder", type=Path, help="exported bundle")
    parser.add_argument("output", type=Path, help="new video file, .mp4 or .mkv")
    parser.add_argument("--codec", default="libx264", choices=(*CODECS, "ffv1"))
    parser.add_argument("--quality", type=int, help="constant quality, crf (default: visually lossless)")
    parser.add_argument("--preset", help="preset of the codec (default: a fast one)")
    parser.add_argument("--threads", type=int, help="threads of a network (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    arguments = parser.parse_args(argv)
    try:
        if arguments.output.exists() and not arguments.overwrite:
            raise FileExistsError(f"{str(arguments.output)!r} exists: choose another name, or --overwrite.")
        player = OnnxPlayer(arguments.folder, arguments.threads)
        print(player.decode(arguments.output, arguments.codec, arguments.quality, arguments.preset))
    except (ValueError, OSError, ImportError) as error:
        print(f"player: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
