"""What `written_whole` promises to everything that saves."""

import errno
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_efficient.files import NpyWriter, write_text, written_whole
from tests.files.disks import no_room


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "weights.safetensors"
    with written_whole(target) as draft:
        draft.write_bytes(b"whole")
        assert draft.suffix == target.suffix
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "config.json"
    target.write_text("old")

    def fails() -> None:
        with written_whole(target) as draft:
            draft.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fails()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing yet"), written_whole(tmp_path / "a.json"):
        raise ValueError("nothing yet")
    assert not list(tmp_path.iterdir())


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    plain = tmp_path / "plain.json"
    plain.write_text("{}")
    with written_whole(tmp_path / "whole.json") as draft:
        draft.write_text("{}")
    assert (tmp_path / "whole.json").stat().st_mode == plain.stat().st_mode


def test_weights_get_the_mode_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with written_whole(tmp_path / "weights.safetensors") as draft:
            save_file({"a": torch.zeros(3)}, draft)
            assert draft.stat().st_mode & 0o777 == 0o600  # what the library does
    finally:
        os.umask(old)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o640


def test_drafts_of_dead_processes_are_removed_and_others_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.{dead.pid}.partial.json", f".a.{dead.pid}-0123abcd.partial.json"):
        (tmp_path / name).write_text("half")
    kept = [f".a.{os.getpid()}.partial.json", f".b.{dead.pid}.partial.json", ".a.partial.json", "a.7.partial.json"]
    for name in kept:
        (tmp_path / name).write_text("another's")
    write_text(tmp_path / "a.json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "a.json"])


def test_two_threads_write_one_file_without_meeting(tmp_path: Path) -> None:
    target, contents = tmp_path / "a.bin", [bytes([n]) * 300_000 for n in range(8)]

    def write(content: bytes) -> None:
        with written_whole(target) as draft:
            for start in range(0, len(content), 50_000):
                with open(draft, "ab") as file:
                    file.write(content[start : start + 50_000])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert target.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [target]


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 122 + ".json")
    write_text(target, "{}")
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("theirs")
    (tmp_path / "a.json").symlink_to("there.json")
    write_text(tmp_path / "a.json", "ours")
    assert (tmp_path / "there.json").read_text() == "theirs"
    assert (tmp_path / "a.json").read_text() == "ours"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(200_000)),
        lambda path: save_file({"a": torch.zeros(50_000)}, path),
        lambda path: torch.save({"a": torch.zeros(50_000)}, path),
        lambda path: np.save(path, np.zeros(50_000)),
        lambda path: Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(
            path, "png"
        ),
    ],
    ids=["bytes", "safetensors", "torch", "numpy", "pillow"],
)
def test_no_room_is_one_line_and_keeps_what_was_there(tmp_path: Path, write: Any) -> None:
    target = tmp_path / "a.npy"
    target.write_text("old")
    with no_room(100_000), pytest.raises(OSError, match=re.escape(repr(str(target)))) as caught, \
            written_whole(target) as draft:  # fmt: skip
        write(draft)
    assert "\n" not in str(caught.value)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_of_a_draft_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(repr(str(tmp_path / "no" / "a.json")))):
        write_text(tmp_path / "no" / "a.json", "{}")


def test_rows_of_an_array(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    with NpyWriter(tmp_path / "a.npy", np.float32, (4, 2, 3)) as writer:
        writer.add(rows[:1])
        writer.add(rows[1:])
        with pytest.raises(ValueError, match="behind 4 rows"):
            writer.add(rows[:1])
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), rows)
