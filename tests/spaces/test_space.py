"""What the Spaces share: checked values, the deadline, the one thread, files that go away, bounded requests."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from hf_efficient import space
from hf_efficient.files.temporary import sweep, work_folder
from hf_efficient.representation.evaluation.questions import EVALUATION_SET
from tests.conftest import ROOT
from tests.spaces.running import import_app
from tests.video.clips import make_clip, moving_frames

EXAMPLE = EVALUATION_SET / "images" / "00000.png"

NO_NUMBER: list[Any] = [None, "8", "", [], [3], {}, True, float("nan"), float("inf"), -float("inf"), 10**400, "9" * 500]


@pytest.mark.parametrize("value", [*NO_NUMBER, 2.5, 0, 11, -1])
def test_whole_numbers_out_of_bounds_or_of_another_type_are_refused(value: object) -> None:
    with pytest.raises(gr.Error, match=r"Steps: .* is not a whole number from 1 to 10\.") as caught:
        space.whole("Steps", value, 1, 10)
    assert len(str(caught.value)) < 200


def test_whole_numbers_come_as_int() -> None:
    for value in (3, 3.0):
        made = space.whole("Steps", value, 1, 10)
        assert (made, type(made)) == (3, int)


@pytest.mark.parametrize("value", [*NO_NUMBER, -0.1, 1.1, 1e308])
def test_numbers_out_of_bounds_are_refused(value: object) -> None:
    with pytest.raises(gr.Error, match=r"ρ: .* is not a number from 0 to 1\."):
        space.number("ρ", value, 0, 1)


@pytest.mark.parametrize("value", [None, "c", [], ["a"], {}, 1, True, "<b>a"])
def test_what_is_no_choice_is_refused(value: object) -> None:
    with pytest.raises(gr.Error, match=r"Method: .* is not one of a, b\."):
        space.one_of("Method", value, ("a", "b"))
    assert "<b>" not in str(space.refusal(f"{value}"))


def test_choices_come_once_and_in_order() -> None:
    assert space.some_of("Train", ["b", "a", "b"], ["a", "b", "c"]) == ["a", "b"]
    assert space.some_of("Train", None, ["a"]) == []
    for value in ("a", ["x"], ["a"] * 1000, 3, {"a": 1}, [["a"]]):
        with pytest.raises(gr.Error, match="Train"):
            space.some_of("Train", value, ["a", "b"])


def test_the_deadline_ends_what_calls_it() -> None:
    deadline = space.Deadline(0.05, "Try less.")
    deadline(1)
    time.sleep(0.06)
    with pytest.raises(gr.Error, match=r"more than 0\.05 seconds and was stopped\. Try less\."):
        deadline()


def test_all_work_is_done_in_one_thread() -> None:
    seen: list[str] = []
    threads = [
        threading.Thread(target=lambda: seen.append(space.in_one_thread(lambda: threading.current_thread().name)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1
    assert seen[0] != threading.current_thread().name


def test_an_error_of_ours_is_one_sentence_and_the_log_has_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(gr.Error, match="Pick"):
        space.in_one_thread(lambda: (_ for _ in ()).throw(space.refusal("Pick one.")))
    assert not caplog.records
    with pytest.raises(gr.Error, match="did not work"):
        space.in_one_thread(lambda: 1 / 0)
    assert "ZeroDivisionError" in caplog.text


def test_old_files_go_and_what_is_shown_or_waited_for_stays(tmp_path: Path) -> None:
    names = ("old/a.png", "old/sub/b.png", "shown.png", "waits.png", "works.png", "new.png", "work_x/bundle/c")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    time.sleep(0.3)
    (tmp_path / "new.png").write_bytes(b"y")

    def event(name: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(data=[1, [{"path": str(tmp_path / name), "meta": {}}], None]))

    line = SimpleNamespace(queue=[event("waits.png"), SimpleNamespace(data=None)])
    queue = SimpleNamespace(event_queue_per_concurrency_id={"a": line}, active_jobs=[None, [event("works.png")]])
    blocks = {1: SimpleNamespace(keep_in_cache={str(tmp_path / "shown.png")}), 2: SimpleNamespace()}
    page: Any = SimpleNamespace(blocks=blocks, _queue=queue)
    sweep(tmp_path, 0.25, space.in_use(page))
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"shown.png", "waits.png", "works.png", "new.png"}
    time.sleep(0.3)
    sweep(tmp_path, 0.25)
    time.sleep(0.3)
    sweep(tmp_path, 0.25)  # a folder is as old as its last change
    assert list(tmp_path.iterdir()) == []


def test_nesting_without_end_is_looked_through() -> None:
    deep: Any = {"path": "a"}
    for _ in range(20_000):
        deep = [deep]
    event = SimpleNamespace(data=SimpleNamespace(data=deep))
    queue = SimpleNamespace(event_queue_per_concurrency_id={}, active_jobs=[[event]])
    page: Any = SimpleNamespace(blocks={}, _queue=queue)
    assert space.in_use(page) == {"a"}


def test_files_outside_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "thesis.txt").write_text("x")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "own" / "file").symlink_to(tmp_path / "outside" / "thesis.txt")
    os.utime(tmp_path / "outside" / "thesis.txt", (0, 0))
    time.sleep(0.05)
    sweep(tmp_path / "own", 0.01)
    assert (tmp_path / "outside" / "thesis.txt").read_text() == "x"


def test_the_own_folder_is_where_gradio_puts_its_files() -> None:
    folder = space.own_folder()
    assert folder is space.own_folder()
    assert Path(os.environ["GRADIO_TEMP_DIR"]).parent == folder
    with work_folder(folder) as work:
        assert work.parent == folder
        (work / "a").write_bytes(b"x")
        time.sleep(0.05)
        sweep(folder, 0.01)
        assert (work / "a").exists()  # work goes on, however old its files are
    assert not work.exists()


def client_of(largest_upload: int) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    async def size(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    routes = [Route("/gradio_api/upload", size, methods=["POST"]), Route("/gradio_api/call/x", size, methods=["POST"])]
    return TestClient(space.LimitedBodies(Starlette(routes=routes), largest_upload))


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_are_bounded(chunked: bool) -> None:
    def body(size: int) -> Any:
        return (b"x" * 1000 for _ in range(size // 1000)) if chunked else b"x" * size

    client = client_of(largest_upload=3_000_000)
    assert client.post("/gradio_api/call/x", content=body(1_000_000)).text == "1000000"
    assert client.post("/gradio_api/call/x", content=body(2_000_000)).status_code == 413
    assert client.post("/gradio_api/upload", content=body(3_000_000)).text == "3000000"
    assert client.post("/gradio_api/upload", content=body(5_000_000)).status_code == 413


@pytest.mark.parametrize("name", ["visual_tokens", "video", "training", "planner"])
def test_no_value_that_a_client_may_post_gets_past_the_checks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each argument in turn is something else: a sentence, and no work is begun."""
    app = import_app(ROOT / "spaces" / name)
    clip = make_clip(tmp_path / "clip.mp4", moving_frames(2, 96, 64))
    asked, good = {
        "visual_tokens": (lambda *call: app.ask(*call), [str(EXAMPLE), "list all .", "id_pruner", 9]),
        "video": (lambda *call: next(app.fit(*call)), [str(clip), 2, "jstdo", 20]),
        "training": (lambda *call: app.compare(*call), [["plain"], 0.2, 40, "all weights", "bidst", 0]),
        "planner": (lambda *call: next(app.plan(*call)), [50, 100, 100, ["8 bits"], 8]),
    }[name]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work is begun")

    for work in {"training": ["train"], "planner": ["find_plan"]}.get(name, ["compare", "fit_video"]):
        if hasattr(app, work):
            monkeypatch.setattr(app, work, refuse)
    with pytest.raises(gr.Error, match="did not work"):  # the good call gets to the work
        asked(*good)
    for at in range(len(good)):
        for value in [*NO_NUMBER, -1, 10**9, "zebra", "\0", ["x"] * 50, {"path": "/etc/passwd"}, b"x"]:
            call = [*good[:at], value, *good[at + 1 :]]
            with pytest.raises(gr.Error) as caught:
                asked(*call)
            assert "\n" not in caught.value.message
            assert "did not work" not in caught.value.message, call
