"""Folders are replaced as a whole, and nothing goes that is not ours."""

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hf_efficient.files import Contents, check_ours, delete_folder, folder_written_whole, folders, recover
from hf_efficient.files.names import draft_name
from tests.files.kills import killed_before

BOX = Contents(
    "box", "box.json", lambda record: record.get("format") == "box", (r"box\.json", r"part-\d", r"part-\d/\w+")
)


def box(folder: Path, number: int) -> Path:
    (folder / "part-0").mkdir(parents=True)
    (folder / "part-0" / "data").write_text(str(number))
    (folder / "box.json").write_text(json.dumps({"format": "box", "number": number}))
    return folder


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=["exchange", "aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of replacing a folder."""
    if request.param == "aside":
        monkeypatch.setattr(folders, "exchanged", lambda one, other: False)
    return str(request.param)


def test_a_folder_of_ours_is_replaced_whole(tmp_path: Path, way: str) -> None:
    target, new = box(tmp_path / "box", 1), content(box(tmp_path / "new", 2))
    (target / "part-1").mkdir()  # what the new one lacks goes
    with folder_written_whole(target, BOX) as draft:
        (draft / "part-0").mkdir()
        for name, text in new.items():
            (draft / name).write_text(text)
            (draft / name).chmod(0o600)
        assert content(target)["part-0/data"] == "1"
    assert content(target) == new
    assert {p.stat().st_mode & 0o777 for p in target.rglob("*") if p.is_file()} == {0o644}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["box", "new"]


def test_what_a_kill_left_in_a_draft_inside_of_a_folder_is_ours_too(tmp_path: Path) -> None:
    target = box(tmp_path / "box", 1)
    draft = draft_name(target / "part-1")
    draft.mkdir()
    (draft / "data").write_text("half")
    assert check_ours(target, BOX)["number"] == 1
    delete_folder(target, BOX)
    assert not target.exists()


def test_a_failure_keeps_the_old_folder(tmp_path: Path, way: str) -> None:
    target = box(tmp_path / "box", 1)
    before = content(target)

    def fail() -> None:
        with folder_written_whole(target, BOX) as draft:
            box(draft / "x", 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content(target) == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["notes.txt", "part-0/deep/notes.txt", "part-7", ".notes.2024.partial.txt"])
def test_a_foreign_file_is_named_and_kept(tmp_path: Path, name: str) -> None:
    target = box(tmp_path / "box", 1)
    (target / name).parent.mkdir(exist_ok=True)
    if name == "part-7":  # our name, but a link to what is not ours
        (tmp_path / "theirs").mkdir()
        (target / name).symlink_to(tmp_path / "theirs")
    else:
        (target / name).write_text("a year of work")
    before = content(target)

    def replace() -> None:
        with folder_written_whole(target, BOX):
            raise AssertionError("no work is done for it")

    with pytest.raises(FileExistsError, match=re.escape(name.split("/notes")[0])):
        replace()
    assert content(target) == before
    delete_folder(target, BOX)  # what is ours may go
    assert (target / name).exists()
    assert (target / "box.json").exists()  # which still says whose the rest was
    assert not (target / "part-0" / "data").exists()


@pytest.mark.parametrize("record", [None, "{}", "[]", "no JSON", '{"format": "crate"}'])
def test_without_a_record_of_ours_nothing_is_touched(tmp_path: Path, record: str | None) -> None:
    target = box(tmp_path / "box", 1)
    (target / "box.json").unlink()
    if record is not None:
        (target / "box.json").write_text(record)
    before = content(target)
    with pytest.raises(FileExistsError, match="neither replaced nor deleted"):
        check_ours(target, BOX)
    delete_folder(target, BOX)
    assert content(target) == before


def test_a_link_to_a_folder_of_ours_is_not_it(tmp_path: Path) -> None:
    box(tmp_path / "box", 1)
    (tmp_path / "link").symlink_to("box")
    with pytest.raises(FileExistsError):
        check_ours(tmp_path / "link", BOX)
    delete_folder(tmp_path / "link", BOX)
    assert content(tmp_path / "box")


def test_an_empty_folder_is_filled_and_one_in_use_is_not(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with folder_written_whole(tmp_path / "new") as draft:
        (draft / "a").write_text("a")
    assert content(tmp_path / "new") == {"a": "a"}

    def again() -> None:
        with folder_written_whole(tmp_path / "new") as draft:
            (draft / "a").write_text("b")

    with pytest.raises(FileExistsError, match="in use"):
        again()
    assert content(tmp_path / "new") == {"a": "a"}


def put(target: Path) -> None:
    with folder_written_whole(target, BOX) as draft:
        (draft / "part-0").mkdir()
        (draft / "part-0" / "data").write_text("2")
        (draft / "box.json").write_text('{"format": "box", "number": 2}')


def test_killed_before_any_of_its_steps_it_leaves_the_old_or_the_new(tmp_path: Path, way: str) -> None:
    old, ends = content(box(tmp_path / "old", 1)), set()
    new = {**old, "part-0/data": "2", "box.json": '{"format": "box", "number": 2}'}
    for step in range(60):
        folder = tmp_path / str(step)
        target = box(folder / "box", 1)
        killed = killed_before(step, partial(put, target), ((folders, "exchanged"),))
        if way == "exchange":  # nobody has to call again
            assert content(target) in (old, new)
        recover(target, BOX)
        assert content(target) in (old, new)
        ends.add(content(target)["part-0/data"])
        assert sorted(p.name for p in folder.iterdir() if p.name != ".box.lock") == ["box"]
        if not killed:
            break
    assert ends == {"1", "2"}
    assert step > 15


def test_no_other_folder_loses_its_name(tmp_path: Path) -> None:
    """A folder with the name of a draft stays, as long as its process lives or it is of another output."""
    for name in (f".box.{os.getpid()}-0123abcd.partial", ".other.99999999-0123abcd.partial", ".box.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("kept")
    names: list[Any] = sorted(p.name for p in tmp_path.iterdir())
    recover(tmp_path / "box", BOX)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
