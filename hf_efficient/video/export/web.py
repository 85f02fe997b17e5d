"""The page that plays a bundle in a browser, and the files of onnxruntime-web that it runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np

import hf_efficient
from hf_efficient.files import copy_file, folder_written_whole, scratch_folder, write_bytes
from hf_efficient.video.files.containers import MediaError, open_media, video_stream
from hf_efficient.video.files.reader import StrPath

from .folder import PAGE, RUNTIME, TIMES

ASSETS = Path(hf_efficient.__file__).parent / "assets" / "web_player"
PACKAGE, TESTED = "onnxruntime-web", "1.30.0"
WASM = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU = ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
BROWSERS_PLAY = {"h264": "H.264", "av1": "AV1", "vp9": "VP9", "vp8": "VP8"}


def check_playable(stream: Path) -> None:
    """Refuse a stream that browsers do not play.

    Raises:
        MediaError: it is not 4:2:0 of 8 bits in H.264, AV1, VP8 or VP9, or not in MP4.
    """
    with open_media(stream) as container:
        video = video_stream(container, stream)
        codec, pixels = video.codec_context.codec.canonical_name, video.codec_context.pix_fmt
    wrong = None
    if codec not in BROWSERS_PLAY or pixels not in ("yuv420p", "yuvj420p"):
        wrong = f"{codec} in {pixels}; encode with --lr-codec libx264 or libsvtav1 and --lr-quality above 0"
    elif stream.suffix != ".mp4":
        wrong = f"a {stream.suffix} file; give the source as .mp4 (ffmpeg -i FILE -c copy NEW.mp4) and encode that"
    if wrong:
        raise MediaError(f"{str(stream)!r} is not a stream that browsers play: {wrong}.")


def find_runtime(folder: StrPath | None) -> Path:
    """The folder with the files of onnxruntime-web.

    Args:
        folder: it, or the unpacked npm package; None: the version that the page was tested with, which npm fetches
            once into ~/.cache/hf_efficient (or $HF_EFFICIENT_CACHE).

    Raises:
        FileNotFoundError: a file is missing, or there is no npm, or npm could not fetch it.
    """
    if folder is None:
        folder = _fetched()
    found = next((path for path in (Path(folder), Path(folder) / "dist") if (path / WASM[0]).is_file()), None)
    if found is None or not all((found / name).is_file() for name in WASM):
        raise FileNotFoundError(
            f"{str(folder)!r} does not hold {', '.join(WASM)} of {PACKAGE}: name the `dist` folder of its npm package "
            f"(npm pack {PACKAGE}@{TESTED}), or leave --runtime out."
        )
    return found


def _fetched() -> Path:
    """The tested version, from npm, kept in the cache."""
    cache = Path(os.environ.get("HF_EFFICIENT_CACHE", Path.home() / ".cache" / "hf_efficient"))
    target = cache / f"{PACKAGE}-{TESTED}"
    if target.is_dir():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"The page runs on {PACKAGE} {TESTED}, which npm fetches, and npm is not installed: install it, or fetch "
            "the package elsewhere and name its folder with --runtime."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target) as scratch:
        command = [npm, "pack", f"{PACKAGE}@{TESTED}", "--silent", "--pack-destination", str(scratch)]
        run = subprocess.run(command, capture_output=True, text=True)
        archives = list(scratch.glob("*.tgz"))
        if run.returncode or not archives:
            said = " ".join(run.stderr.split())[-300:]
            raise FileNotFoundError(
                f"npm could not fetch {PACKAGE} {TESTED} ({said}): fetch it elsewhere and name its folder with "
                "--runtime."
            )
        with folder_written_whole(target) as folder, tarfile.open(archives[0]) as archive:
            for name in (*WASM, *WEBGPU):
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                write_bytes(folder / name, member.read(), durable=False)
    return target


def add_page(folder: Path, stream: Path, runtime: Path) -> None:
    """Write the page, what it runs on, and the times of the stream's frames.

    Args:
        folder: the export.
        stream: its low-resolution video.
        runtime: as `find_runtime` gives it; the files for WebGPU are copied if they are there.
    """
    for name in PAGE:
        copy_file(ASSETS / name, folder / name)
    (folder / RUNTIME).mkdir()
    for name in (*WASM, *(WEBGPU if has_webgpu(runtime) else ())):
        copy_file(runtime / name, folder / RUNTIME / name)
    write_bytes(folder / TIMES, frame_times(stream).astype("<f8").tobytes())


def has_webgpu(folder: Path) -> bool:
    """Whether a folder has the files for WebGPU."""
    return all((folder / name).is_file() for name in WEBGPU)


def frame_times(stream: Path) -> np.ndarray:
    """(T,) seconds at which each frame is shown, in order."""
    with open_media(stream) as container:
        video = video_stream(container, stream)
        stamps = [packet.pts for packet in container.demux(video) if packet.size and packet.pts is not None]
        return np.sort(np.array(stamps, np.float64)) * float(video.time_base)
