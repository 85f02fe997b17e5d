"""Outputs are looked at first, and one process at a time writes them."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest

from hf_efficient.files import check_output, ffmpeg_url, locked, require_space
from tests.files.disks import small_disk
from tests.video.clips import make_clip, moving_frames


@pytest.mark.parametrize("name", ["new", "there", "a:b", "-x", "http:x"])
def test_a_good_output_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    assert check_output(tmp_path / name, "folder") == tmp_path / name
    assert check_output(tmp_path / "there" / f"{name}.mp4", "file")
    assert check_output(tmp_path / "not" / "yet" / name, "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


def test_what_is_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    for kind, name, said in (
        ("folder", "file", "is a file"),
        ("file", "folder", "is a folder"),
        ("folder", "link", "is a link to 'folder'"),
        ("file", "link", "is a link"),
        ("folder", "dangling", "is a link"),
        ("file", "dangling", "is a link"),
        ("file", "pipe", "device or pipe"),
    ):
        with pytest.raises(FileExistsError, match=said):
            check_output(tmp_path / name, kind)  # type: ignore[arg-type]
    for kind in ("file", "folder"):
        with pytest.raises(NotADirectoryError, match="is not a folder"):
            check_output(tmp_path / "file" / "x", kind)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="make it first"):
        check_output(tmp_path / "no" / "x.mp4", "file")
    for path in ("", ".", "/", "..", "a/.."):
        with pytest.raises(ValueError, match="a name"):
            check_output(path, "folder")


def test_a_mount_point_cannot_be_replaced(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 16) as disk, pytest.raises(FileExistsError, match="mount point"):
        check_output(disk, "folder")


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for kind in ("file", "folder"):
            with pytest.raises(PermissionError, match="no permission"):
                check_output(disk / "x", kind)  # type: ignore[arg-type]


def test_what_is_read_is_no_output(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    source = folder / "source.mp4"
    source.write_text("video")
    (tmp_path / "hard.mp4").hardlink_to(source)
    (tmp_path / "other").symlink_to("bundle")
    with pytest.raises(ValueError, match="is the input"):
        check_output(source, "file", [source])
    with pytest.raises(ValueError, match="is the input"):
        check_output(tmp_path / "hard.mp4", "file", [source])
    with pytest.raises(ValueError, match="lies inside the output"):
        check_output(folder, "folder", [source])
    with pytest.raises(ValueError, match="lies inside the output"):
        check_output(folder, "folder", [tmp_path / "other" / "source.mp4"])
    with pytest.raises(ValueError, match="an input"):
        check_output(tmp_path / "other" / "out.mp4", "file", [folder])
    check_output(tmp_path / "out.mp4", "file", [source, folder])


def test_space_is_asked_for_before(tmp_path: Path) -> None:
    require_space(tmp_path, 1000, "patches")
    with pytest.raises(OSError, match="patches need") as caught:
        require_space(tmp_path, 1 << 60, "patches")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mp4", "-.mp4", "ü %03d?x#y.mp4", "concat:a|b.mp4"])
def test_ffmpeg_reads_no_name_as_an_address(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(Path(ffmpeg_url(name)), moving_frames(2, 32, 32))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with av.open(ffmpeg_url(name)) as container:
        assert len(list(container.decode(video=0))) == 2


HOLD = """
import sys, time
from hf_efficient.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"bundle' is being written by another process \({child.pid}\)"), \
                locked(target):  # fmt: skip
            pass
        with locked(tmp_path / "other"):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with locked(target), pytest.raises(BlockingIOError), locked(target):  # freed by the kill; a thread is refused too
        pass
    for left in ("4711", "\0\0\0\0"):  # of a kill, of a power cut
        (tmp_path / ".bundle.lock").write_text(left)
        with locked(target):
            assert (tmp_path / ".bundle.lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder", "pipe"])
def test_what_has_the_name_of_a_lock_and_is_none_is_left_alone(tmp_path: Path, kind: str) -> None:
    lock, notes = tmp_path / ".bundle.lock", tmp_path / "notes.txt"
    notes.write_text("three years")
    if kind == "file":
        lock.write_text("my own notes")
    elif kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to("notes.txt" if kind == "link" else "nothing")
    before = lock.lstat()
    with pytest.raises(FileExistsError, match=r"bundle\.lock' is not a lock of ours"), locked(tmp_path / "bundle"):
        raise AssertionError("nothing is done")
    assert (lock.lstat().st_ino, lock.lstat().st_size) == (before.st_ino, before.st_size)
    assert notes.read_text() == "three years"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bundle.lock", "notes.txt"]
