"""Exported bundles play as the bundle does: by onnxruntime, and in a browser."""

import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnxruntime

from hf_efficient.cli import main
from hf_efficient.methods import BACKBONES
from hf_efficient.video.export.export import export_bundle
from hf_efficient.video.export.networks import to_onnx
from hf_efficient.video.export.player import OnnxPlayer
from hf_efficient.video.export.web import ASSETS, check_playable, find_runtime
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.containers import MediaError
from hf_efficient.video.networks.inference import enlarge_inner
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.networks.weights import as_stored
from hf_efficient.video.play.player import Player
from tests.cli.shell import error_of
from tests.spaces.running import browser_page
from tests.video.bundles import quick_bundle
from tests.video.clips import make_clip, moving_frames

SHOWN = """async (n) => {
    await window.player.ready;
    const shown = await window.player.show(n);
    return [shown.index, shown.exact, Array.from(shown.picture)];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("weight_dtype", ["float16", "int8"])
@pytest.mark.parametrize("name", BACKBONES.names)
def test_a_network_is_the_same_as_onnx(name: str, weight_dtype: str) -> None:
    torch.manual_seed(0)
    spec = NetworkSpec(name, 3, 4, 2)
    net = as_stored(spec.build(), weight_dtype).eval()
    file = to_onnx(net, spec)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for height, width in ((2 * spec.receptive_radius + 5, 2 * spec.receptive_radius + 12), (61, 50)):
        frame = torch.rand(1, 3, height, width)
        with torch.no_grad():
            expected = enlarge_inner(net, spec, frame).numpy()
        (output,) = session.run(["enlarged"], {"frame": frame.numpy()})
        np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two networks of int8."""
    return quick_bundle(tmp_path_factory.mktemp("export") / "made", method="stdo", num_chunks=2, weight_dtype="int8")


def levels_apart(bundle: Bundle, folder: Path) -> int:
    """The largest difference of a level between the bundle's player and onnxruntime's."""
    pairs = zip(Player(bundle).frames(), OnnxPlayer(folder, threads=1).frames(), strict=True)
    return max(int(np.abs(a.rgb.astype(int) - b.rgb).max()) for a, b in pairs)


@pytest.mark.slow
def test_an_export_plays_as_the_bundle(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stdo", "export", str(bundle.path), str(tmp_path / "onnx")]) == 0
    assert levels_apart(bundle, tmp_path / "onnx") <= 1
    weights = sum(path.stat().st_size for path in (tmp_path / "onnx" / "networks").iterdir())
    assert weights < 2 * (bundle.model / "model.safetensors").stat().st_size
    assert "in use" in error_of(capsys, "stdo", "export", bundle.path, tmp_path / "onnx")
    assert main(["stdo", "export", str(bundle.path), str(tmp_path / "onnx"), "--overwrite"]) == 0
    assert "is an input" in error_of(capsys, "stdo", "export", bundle.path, bundle.path / "inside")


def test_what_browsers_do_not_play_is_refused(tmp_path: Path) -> None:
    small = moving_frames(2, 64, 48)
    check_playable(make_clip(tmp_path / "good.mp4", small))
    with pytest.raises(MediaError, match=r"a \.mkv file"):
        check_playable(make_clip(tmp_path / "good.mkv", small))
    with pytest.raises(MediaError, match="h264 in yuv444p"):
        check_playable(make_clip(tmp_path / "wide.mp4", small, pixel_format="yuv444p"))


def test_a_runtime_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="npm pack onnxruntime-web@"):
        find_runtime(tmp_path)
    monkeypatch.setenv("HF_EFFICIENT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--runtime"):
        find_runtime(None)


@pytest.fixture
def page_folder(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address and the folder that the page's own server serves."""
    shutil.copy(ASSETS / "serve.py", tmp_path)
    (tmp_path / "video.mp4").write_bytes(bytes(range(256)) * 1000)
    command = [sys.executable, str(tmp_path / "serve.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), tmp_path
        process.terminate()


def test_the_pages_server_isolates_it_and_sends_parts(page_folder: tuple[str, Path]) -> None:
    (url, folder), content = page_folder, bytes(range(256)) * 1000
    parts = {"": content, "bytes=0-99": content[:100], "bytes=255900-": content[-100:], "bytes=5-999999": content[5:]}
    for asked, expected in parts.items():
        request = urllib.request.Request(f"{url}/video.mp4", headers={"Range": asked} if asked else {})
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert answer.status == (206 if asked else 200)
            assert answer.read() == expected
            if asked:
                first = len(content) - len(expected) if asked != "bytes=0-99" else 0
                assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(content)}"
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(f"{url}/video.mp4", headers={"Range": "bytes=999999-"}))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/../{folder.name}x")


@pytest.mark.slow
def test_the_pages_server_gives_it_threads(bundle: Bundle, tmp_path: Path) -> None:
    """From the first visit on, and without ?runtime: where the browser has no WebGPU, by WebAssembly."""
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on this machine")
    try:
        export_bundle(bundle.path, tmp_path / "web", "web", find_runtime(None))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    command = [sys.executable, str(tmp_path / "web" / "serve.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with browser_page(url) as page:
            page.goto(f"{url}/?threads=2", wait_until="domcontentloaded")
            page.wait_for_selector("#status:has-text('Frame 1 of 12')")
            assert page.evaluate("window.crossOriginIsolated")
            assert page.evaluate("navigator.serviceWorker.getRegistrations().then((all) => all.length)") == 0
            gpu = page.evaluate("navigator.gpu ? navigator.gpu.requestAdapter().then(Boolean) : false")
            assert ("WebGPU" if gpu else "WebAssembly, 2 threads") in page.inner_text("#status")
        process.terminate()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, from a plain file server: no parts of files, no headers of isolation."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.mark.slow
def test_a_browser_shows_the_frames_of_the_player(bundle: Bundle, tmp_path: Path) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on this machine")
    try:
        runtime = find_runtime(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    export_bundle(bundle.path, tmp_path / "web", "web", runtime)
    truth = [frame.rgb.astype(int) for frame in Player(bundle).frames()]
    with served(tmp_path / "web") as url, browser_page(url) as page:
        page.goto(f"{url}/?runtime=wasm&frame=3", wait_until="domcontentloaded")
        page.wait_for_selector("#status:has-text('Frame 4 of 12')")
        for n in (7, 2, 11, 11, 0):
            index, exact, picture = page.evaluate(SHOWN, n)
            rgb = np.array(picture).reshape(*truth[0].shape[:2], 4)[..., :3]
            assert (index, exact) == (n, True)
            assert np.abs(rgb - truth[n]).max() <= 3
            assert np.abs(rgb - truth[n]).mean() < 0.1
        page.fill("#slider", "40")
        assert "40%" in page.evaluate("document.getElementById('enlarged').style.clipPath")
        page.click("#play")
        page.wait_for_selector("#status:has-text('Frame 12 of 12')")
        counts = page.evaluate("window.player.counts")
        assert counts["shown"] + counts["dropped"] >= 12
        assert "of real time" in page.inner_text("#status")
