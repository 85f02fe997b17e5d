"""Nothing of the user's is lost to an encoder or a decoder, and nothing of theirs ends in what they write."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hf_efficient.video.encode import stages as fit_module
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import probe, read_frames
from hf_efficient.video.play.decode import decode
from tests.files.disks import no_room
from tests.video.bundles import QUICK, files, quick_bundle, source_clip


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes as far as to train was not refused before any work."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    for stage in ("prepare", "make_low_resolution", "score", "make_stores", "train"):
        monkeypatch.setattr(fit_module.Fit, stage, fail)


def encode(source: Path, output: Path, **settings: Any) -> Bundle:
    return fit_video(source, output, **{**QUICK, **settings})


def test_a_folder_of_documents_is_not_replaced(tmp_path: Path, no_work: None) -> None:
    source, folder = source_clip(tmp_path), tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years")
    for record in (None, "{}", "no JSON"):
        if record:
            (folder / "bundle.json").write_text(record)
        before = files(folder)
        with pytest.raises(FileExistsError, match="neither replaced nor deleted"):
            encode(source, folder, overwrite=True)
        assert files(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["documents", "source.mp4"]


def test_a_foreign_folder_beside_the_output_is_not_taken_for_work(tmp_path: Path, no_work: None) -> None:
    source, folder = source_clip(tmp_path), tmp_path / "bundle.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("three years")
    for record in (None, "{}", '{"theme": "dark"}'):
        if record:
            (folder / "settings.json").write_text(record)
        before = files(folder)
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="neither replaced nor deleted"):
                encode(source, tmp_path / "bundle", overwrite=overwrite)
        assert files(folder) == before


def test_what_was_put_into_a_bundle_or_its_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = quick_bundle(tmp_path).path
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "overfit", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode(tmp_path / "source.mp4", tmp_path / "other")
    for folder, output in ((bundle, bundle), (tmp_path / "other.partial", tmp_path / "other")):
        notes = folder / "notes.txt"
        notes.write_text("mine")
        before = files(folder)
        with pytest.raises(FileExistsError, match=r"notes\.txt"):
            encode(tmp_path / "source.mp4", output, steps=4, overwrite=True)
        assert files(folder) == before


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_source_is_not_deleted(tmp_path: Path, no_work: None) -> None:
    bundle = tmp_path / "bundle"
    source = source_clip(_folder(bundle))
    with pytest.raises(ValueError, match="lies inside the output"):
        encode(source, bundle, overwrite=True)
    work = source_clip(_folder(tmp_path / "x.partial"))
    with pytest.raises(ValueError, match="lies inside the output"):
        encode(work, tmp_path / "x", overwrite=True)
    for path in (source, work):
        assert probe(path).width == 96
        with pytest.raises((ValueError, OSError)):
            encode(path, path, overwrite=True)
        assert probe(path).width == 96


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("overwrite", [False, True])
def test_outputs_of_another_kind_are_refused_before_any_work(tmp_path: Path, no_work: None, overwrite: bool) -> None:
    source = source_clip(tmp_path)
    (tmp_path / "file").write_text("a file")
    _folder(tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "nowhere").symlink_to("nothing")
    before = files(tmp_path)
    for name in ("file", "link", "nowhere", "file/x"):
        with pytest.raises(OSError, match=r"file|link"):
            encode(source, tmp_path / name, overwrite=overwrite)
    assert files(tmp_path) == before
    assert (tmp_path / "link").is_symlink()


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o007, 0o660)):
        old = os.umask(umask)
        try:
            bundle = quick_bundle(tmp_path / str(umask), steps=2).path
            decode(bundle, tmp_path / f"{umask}.mp4", preset="ultrafast")
        finally:
            os.umask(old)
        assert {p.stat().st_mode & 0o777 for p in bundle.rglob("*") if p.is_file()} == {mode}
        assert (tmp_path / f"{umask}.mp4").stat().st_mode & 0o777 == mode


def test_what_a_kill_left_of_the_stream_does_not_end_in_the_bundle(tmp_path: Path) -> None:
    source, output = source_clip(tmp_path), tmp_path / "bundle"
    child = (
        "import os, sys\n"
        "from hf_efficient.video.encode import fit\n"
        "from hf_efficient.video.files import writer\n"
        "from pathlib import Path\n"
        "from tests.video.bundles import QUICK\n"
        "writer.VideoWriter.write = lambda *_: os.kill(os.getpid(), 9)\n"
        "fit.fit_video(Path(sys.argv[1]), Path(sys.argv[2]), **QUICK)\n"
    )
    subprocess.run([sys.executable, "-c", child, str(source), str(output)], check=False)
    draft = tmp_path / "bundle.partial" / "bundle"
    assert [p.name for p in draft.iterdir()]  # the kill left something
    (draft / ".low_resolution.4711.partial.mp4").write_bytes(b"half a stream")
    made = encode(source, output)
    assert sorted(files(made.path)) == [
        "README.md", "bundle.json", "low_resolution.mp4", "model/config.json", "model/model.safetensors",
        "model_index.json",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "source.mp4"]


def test_a_second_encoder_is_refused(tmp_path: Path) -> None:
    source, output = source_clip(tmp_path), tmp_path / "bundle"
    child = (
        "import sys, time\n"
        "from hf_efficient.video.encode import fit\n"
        "from pathlib import Path\n"
        "from tests.video.bundles import QUICK\n"
        "fit.Fit.score = lambda self: (print('scoring', flush=True), time.sleep(60))\n"
        "fit.fit_video(Path(sys.argv[1]), Path(sys.argv[2]), **QUICK)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", child, str(source), str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "scoring\n"
        before = files(tmp_path / "bundle.partial")
        for overwrite in (False, True):
            with pytest.raises(BlockingIOError, match=r"bundle' is being written by another process"):
                encode(source, output, overwrite=overwrite)
        assert files(tmp_path / "bundle.partial") == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert encode(source, output).sizes()  # the lock went with its holder


def test_a_second_decoder_is_refused(tmp_path: Path) -> None:
    bundle = quick_bundle(tmp_path)

    def again(_: int) -> None:
        with pytest.raises(BlockingIOError, match=r"out\.mp4"):
            decode(bundle.path, tmp_path / "out.mp4", preset="ultrafast")

    decode(bundle.path, tmp_path / "out.mp4", preset="ultrafast", progress=again)
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 12


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mp4", "-.mkv", "pipe:1.mp4", "%03d ü.mp4"])
def test_names_that_look_like_addresses(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source_clip(tmp_path).rename(name)
    encode(Path(name), Path(f"{name}.bundle"), steps=2)
    decode(f"{name}.bundle", "out of " + name, preset="ultrafast")
    Path("out of " + name).rename("x:" + name)
    decode(f"{name}.bundle", "y:" + name, preset="ultrafast")
    assert len(list(read_frames("y:" + name))) == 12
    assert Path("x:" + name).read_bytes() == Path("y:" + name).read_bytes()


def test_decoding_onto_something_else_is_refused(tmp_path: Path) -> None:
    bundle = quick_bundle(tmp_path, steps=2)
    (tmp_path / "link.mp4").symlink_to("source.mp4")
    before = files(tmp_path)
    for output in (tmp_path / "bundle", tmp_path / "link.mp4", tmp_path / "no" / "out.mp4"):
        with pytest.raises(OSError, match=r"is a folder|is a link|make it first"):
            decode(bundle.path, output)
    for name in ("out.mp4", "low_resolution.mp4", "model/out.mp4"):
        with pytest.raises(ValueError, match="an input"):
            decode(bundle.path, bundle.path / name)
    assert files(tmp_path) == before


@pytest.mark.parametrize("size", [3_000, 20_000, 60_000])
def test_no_room_is_said_and_the_work_goes_on_when_there_is(tmp_path: Path, size: int) -> None:
    source = source_clip(tmp_path)
    reference = files(encode(source, tmp_path / "reference").path)
    with no_room(size), pytest.raises(OSError, match="cannot be written") as caught:
        encode(source, tmp_path / "bundle")
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert not (tmp_path / "bundle").exists()
    assert files(encode(source, tmp_path / "bundle").path) == reference


def test_the_original_is_not_replaced_by_what_is_decoded(tmp_path: Path) -> None:
    bundle, source = quick_bundle(tmp_path, steps=2), tmp_path / "source.mp4"
    before = source.read_bytes()
    with pytest.raises(ValueError, match="the video that the bundle was made from"):
        decode(bundle.path, source)
    assert source.read_bytes() == before
    source.write_bytes(before + b"\0")  # any other video may be replaced
    decode(bundle.path, source, preset="ultrafast")


@pytest.mark.parametrize("name", [".", "/", "", ".."])
def test_an_output_without_a_name_is_said(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="give the folder a name"):
        encode(source, Path(name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.mp4"]


@pytest.mark.parametrize("place", ["bundle", "bundle.partial"])
def test_a_name_like_that_of_a_draft_is_not_ours_for_that(tmp_path: Path, place: str, no_work: None) -> None:
    notes = tmp_path / place / ".thesis.2024.partial.txt"
    notes.parent.mkdir()
    notes.write_text("three years")
    with pytest.raises(FileExistsError, match="neither replaced nor deleted"):
        encode(source_clip(tmp_path), tmp_path / "bundle", overwrite=True)
    assert notes.read_text() == "three years"


def test_the_manifest_of_a_kept_bundle_is_untouched_by_a_refusal(tmp_path: Path) -> None:
    bundle = quick_bundle(tmp_path, steps=2)
    stamp = (bundle.path / "bundle.json").stat().st_mtime_ns
    time.sleep(0.01)
    with pytest.raises(FileExistsError, match="exists"):
        encode(tmp_path / "source.mp4", bundle.path)
    assert (bundle.path / "bundle.json").stat().st_mtime_ns == stamp
    assert json.loads((bundle.path / "bundle.json").read_text())["format"]
    assert not list(tmp_path.glob(".*"))
