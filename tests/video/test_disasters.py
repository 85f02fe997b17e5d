"""Killed anywhere, or on a disk that fills up, an encoder and a decoder leave the old or the new, and nothing else."""

import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from hf_efficient.cli import main
from hf_efficient.files import NpyWriter
from hf_efficient.video.encode import overfit as overfit_module
from hf_efficient.video.encode import patch_store
from hf_efficient.video.encode import stages as fit_module
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files import bundle as bundle_module
from hf_efficient.video.files import manifest as manifest_module
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.growing_table import GrowingTable
from hf_efficient.video.play.decode import decode
from tests.files.disks import small_disk
from tests.files.kills import changes, killed_before
from tests.video.bundles import QUICK, files, source_clip

STEPS = (
    (VideoWriter, "write"), (GrowingTable, "add"), (NpyWriter, "add"), (patch_store, "require_space"),
    (overfit_module, "save_checkpoint"), (fit_module, "save_experts"), (bundle_module, "sha256"),
    (manifest_module, "sha256"),
)  # fmt: skip
SETTINGS = {**QUICK, "method": "stdo", "num_chunks": 2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "over an older bundle"])
def test_an_encoder_killed_in_every_stage(tmp_path: Path, there: bool) -> None:
    source, rng = source_clip(tmp_path), random.Random(0)
    reference = files(fit_video(source, tmp_path / "reference", **SETTINGS).path)
    old = files(fit_video(source, tmp_path / "old", **{**SETTINGS, "steps": 4}).path)
    total = changes(partial(fit_video, source, tmp_path / "counted", **SETTINGS), STEPS)
    # the end is where it matters
    steps = {round(total * n / 24) for n in range(24)} | {total - n for n in range(1, 30)}
    for step in sorted(steps | {rng.randrange(total) for _ in range(20)}):
        folder = tmp_path / str(step)
        output = folder / "bundle"
        folder.mkdir()
        if there:
            fit_video(source, output, **{**SETTINGS, "steps": 4})
        encode = partial(fit_video, source, output, **SETTINGS, overwrite=there)
        killed_before(step, encode, STEPS)
        if there:
            assert files(output) in (old, reference), step
            Bundle.open(output)
        elif output.exists():
            assert files(output) == reference, step
        work = folder / "bundle.partial"
        if there or not output.exists() or (work.exists() and any(work.iterdir())):
            encode()
        assert files(output) == reference, step
        left = {path.name for path in folder.iterdir()} - {"bundle", ".bundle.lock", "bundle.partial"}
        assert not left, step
        assert not work.exists() or not any(work.iterdir()), step
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_decoder_killed_anywhere(tmp_path: Path, name: str) -> None:
    bundle = fit_video(source_clip(tmp_path), tmp_path / "bundle", **QUICK)
    new = decode(bundle.path, tmp_path / name, preset="ultrafast").read_bytes()
    again = partial(decode, bundle.path, tmp_path / name, preset="ultrafast")
    total = changes(again, STEPS)
    for step in range(total):
        (tmp_path / name).write_bytes(b"old")
        assert killed_before(step, again, STEPS)
        assert (tmp_path / name).read_bytes() in (b"old", new)
        again()
        assert (tmp_path / name).read_bytes() == new
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["bundle", "source.mp4", name])


SIZES = [40, 80, 120, 160, 200, 260, 320, 400, 500, 700, 900]  # KiB
ENCODE = ["--steps", "8", "--batch-size", "4", "--num-features", "4", "--num-blocks", "1", "--checkpoint-every", "2",
          "--method", "jstdo", "--max-patches", "32", "--lr-preset", "ultrafast", "--device", "cpu"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "over an older bundle"])
def test_an_encoder_on_a_full_disk(tmp_path: Path, size: int, there: bool) -> None:
    """In a process of its own: a signal is not an exception."""
    source = source_clip(tmp_path)
    arguments = ["stdo", "encode", str(source)]
    assert main([*arguments, str(tmp_path / "reference"), *ENCODE]) == 0
    reference = files(tmp_path / "reference")
    fit_video(source, tmp_path / "old", **{**QUICK, "steps": 4})
    with small_disk(tmp_path / "disk", size << 10) as disk:
        output, old = disk / "bundle", {}
        if there:
            try:
                old = files(Path(shutil.copytree(tmp_path / "old", output)))
            except shutil.Error:
                pytest.skip("not even the old bundle fits")
        command = [sys.executable, "-m", "hf_efficient.cli", *arguments, str(output), *ENCODE, "--overwrite"]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode in (0, 2), run.stderr
        if run.returncode:
            said = run.stderr.splitlines()[-1]
            assert "error: " in said
            assert "make room" in said.lower()
            assert (files(output) if output.exists() else {}) == old
            subprocess.run(["mount", "-o", f"remount,size={8 << 20}", str(disk)], check=True)
            assert main([*arguments, str(output), *ENCODE, "--overwrite"]) == 0  # it goes on
        assert files(output) == reference
        assert [path.name for path in disk.iterdir()] == ["bundle"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_a_decoder_on_a_full_disk(tmp_path: Path, name: str) -> None:
    bundle = fit_video(source_clip(tmp_path), tmp_path / "bundle", **QUICK)
    new = decode(bundle.path, tmp_path / name, preset="ultrafast").read_bytes()
    pages = len(new) // 4096
    ends = set()
    for size in [*range(1, pages - 4, 3), *range(pages - 4, pages + 8)]:
        with small_disk(tmp_path / "disk", (size + 2) * 4096) as disk:
            (disk / name).write_bytes(b"old")
            try:
                decode(bundle.path, disk / name, preset="ultrafast")
            except OSError as error:
                assert "no space is left" in str(error)  # noqa: PT017  not all sizes are too small
                assert (disk / name).read_bytes() == b"old"
            else:
                assert (disk / name).read_bytes() == new
            ends.add((disk / name).read_bytes() == new)
            assert [path.name for path in disk.iterdir()] == [name]
    assert ends == {True, False}
