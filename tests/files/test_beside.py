"""Files that come into a folder all at once: the old state or the new, and whatever is not ours stays."""

import os
import shutil
from pathlib import Path

import pytest

from hf_efficient.files import beside, folder_updated
from tests.files.kills import killed_before

OURS = {"a.txt", "b/c.txt", "gone.txt"}


def ours(folder: Path) -> set[str]:
    return OURS


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def filled(folder: Path) -> Path:
    """An earlier save of ours, and things of the user's."""
    for name, text in {"a.txt": "1", "b/c.txt": "1", "gone.txt": "1", "theirs.txt": "t", "b/theirs.txt": "t"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("theirs.txt")
    return folder


def update(folder: Path) -> None:
    with folder_updated(folder, ours) as draft:
        (draft / "a.txt").write_text("2")
        (draft / "b").mkdir()
        (draft / "b" / "c.txt").write_text("2")


OLD = {"a.txt": "1", "b/c.txt": "1", "gone.txt": "1", "theirs.txt": "t", "b/theirs.txt": "t", "link": "t"}
NEW = {"a.txt": "2", "b/c.txt": "2", "theirs.txt": "t", "b/theirs.txt": "t", "link": "t"}


@pytest.fixture(params=["exchange", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two steps":
        monkeypatch.setattr(beside, "exchanged", lambda *_: False)
    return str(request.param)


def test_a_new_folder_is_there_at_the_end_alone(tmp_path: Path) -> None:
    with folder_updated(tmp_path / "in" / "new", ours) as draft:
        (draft / "a.txt").write_text("2")
        assert not (tmp_path / "in" / "new").exists()
    assert files(tmp_path) == {"in/new/a.txt": "2"}


def test_what_is_ours_is_replaced_and_what_is_not_stays(tmp_path: Path, way: str) -> None:
    folder = filled(tmp_path / "f")
    update(folder)
    assert files(folder) == NEW
    assert (folder / "link").is_symlink()
    assert (folder / "empty").is_dir()
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("name", ["theirs.txt", "empty", "link"])
def test_a_foreign_file_in_the_way_is_named_and_nothing_changes(name: str, tmp_path: Path) -> None:
    folder = filled(tmp_path / "f")
    with pytest.raises(FileExistsError, match=name), folder_updated(folder, ours) as draft:
        (draft / name).write_text("ours")
    assert files(folder) == OLD
    assert os.listdir(tmp_path) == ["f"]


def test_a_foreign_file_of_the_same_content_is_no_conflict(tmp_path: Path) -> None:
    folder = filled(tmp_path / "f")
    with folder_updated(folder, ours) as draft:
        (draft / "theirs.txt").write_text("t")
    assert files(folder)["theirs.txt"] == "t"


def test_an_error_and_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "f")
    with pytest.raises(ZeroDivisionError), folder_updated(folder, ours):
        raise ZeroDivisionError
    assert files(folder) == OLD

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    update(folder)
    assert files(folder) == NEW


def test_a_file_that_comes_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "f")
    carry = beside._carry_over

    def late(*arguments: object) -> None:
        carry(*arguments)  # type: ignore[arg-type]
        (folder / "late.txt").write_text("l")

    monkeypatch.setattr(beside, "_carry_over", late)
    update(folder)
    assert files(folder) == {**NEW, "late.txt": "l"}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_before_any_of_its_steps_it_leaves_the_old_or_the_new(tmp_path: Path, way: str) -> None:
    seen, step = set(), 0
    while True:
        folder = filled(tmp_path / "f")
        also = ((os, "link"), (shutil, "rmtree"))
        killed = killed_before(step, lambda: update(folder), also)
        if folder.is_dir():
            found = files(folder)
            assert found in (OLD, NEW), step
            seen.add("a.txt" in found and found["a.txt"])
        else:
            assert way == "two steps"  # the next writer brings it back
        update(folder)
        assert files(folder) == NEW, step
        assert os.listdir(tmp_path) == ["f"], step
        shutil.rmtree(folder)
        if not killed:
            break
        step += 1
    assert step > 15
    assert seen == {"1", "2"}
