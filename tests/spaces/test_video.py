"""The video Space: its functions, over HTTP, and in a browser."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import probe, read_frames
from hf_efficient.video.play.player import Player
from tests.conftest import ROOT
from tests.spaces.running import browser_page
from tests.video.clips import make_clip, moving_frames

SPACE = ROOT / "spaces" / "video"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "garden.mp4", moving_frames(6, 96, 64), audio="aac")


def test_the_frame_shown_is_the_one_that_gains_most(app: Any, source: Path, tmp_path: Path) -> None:
    bundle = fit_video(source, tmp_path / "bundle", steps=60, progress_bar=False)
    outcome = app.look(Player(bundle), source)
    truth = [frame.rgb.astype(float) for frame in read_frames(source)]

    def error(image: np.ndarray, t: int) -> float:
        return float(np.square(image - truth[t]).mean())

    plain, played = outcome.images
    gain = np.log(error(plain, outcome.frame) / error(played, outcome.frame))
    curves = outcome.measures["frame_psnr"]
    expected = max(np.subtract(curves["stdo"], curves["bicubic"])) * np.log(10) / 10
    assert gain == pytest.approx(expected, rel=1e-4)


def bad_uploads(folder: Path, source: Path) -> dict[str, Path]:
    """File by what the message about it must say."""
    (folder / "text.mp4").write_text("not a video")
    (folder / "cut.mp4").write_bytes(source.read_bytes()[:600])
    make_clip(folder / "tiny.mp4", moving_frames(3, 64, 32))
    make_clip(folder / "long.mp4", np.zeros((45, 1080, 1920, 3), np.uint8), options={"preset": "ultrafast"})
    return {
        "'text.mp4' cannot be read": folder / "text.mp4",
        "'cut.mp4' cannot be read": folder / "cut.mp4",
        "at least 48 a side": folder / "tiny.mp4",
        "45 frames of 1920 x 1080; this page takes 38": folder / "long.mp4",
    }


def test_bad_uploads_get_a_message(app: Any, source: Path, tmp_path: Path) -> None:
    import gradio as gr

    for message, path in bad_uploads(tmp_path, source).items():
        with pytest.raises(gr.Error, match=message):
            next(app.fit(str(path), 2, "jstdo", 20))
    with pytest.raises(gr.Error, match="Upload a clip"):
        next(app.fit(None, 2, "jstdo", 20))


def test_the_page_says_what_to_use(app: Any) -> None:
    psnr = {"stdo": 31.0, "general": 30.5, "lanczos": 30.1, "bicubic": 30.0}
    assert "adds 0.50 dB" in app.advise(psnr, 30_000, 20_000, 90_000)
    assert "does not pay here" in app.advise({**psnr, "stdo": 30.3}, 30_000, 20_000, 90_000)
    assert "the general network" in app.advise({**psnr, "stdo": 30.3}, 30_000, 20_000, 90_000)
    assert "by Lanczos" in app.advise({**psnr, "stdo": 30, "general": 29}, 30_000, 20_000, 90_000)
    assert "larger than your file" in app.advise(psnr, 30_000, 20_000, 25_000)
    assert "Keep your file" in app.advise(psnr, 30_000, 20_000, 15_000)


@pytest.mark.parametrize("method", ["delta", "stdo"])
def test_over_http(url: str, source: Path, tmp_path: Path, method: str) -> None:
    from gradio_client import Client, handle_file

    (plain, played_image), measures, played, archive, beside = Client(url, verbose=False).predict(
        handle_file(str(source)), 2, method, 40, api_name="/fit"
    )
    for path in (plain, played_image):
        with Image.open(path) as image:
            assert image.size == (96, 64)
    assert len(re.findall(r"<td>[\d.]+ dB</td>", measures)) == 4
    assert [image["caption"] for image in beside] == ["this network", "general network", "Lanczos", "original"]
    video = probe(played["video"] if isinstance(played, dict) else played)
    assert (video.width, video.height, video.other_streams) == (96, 64, ("aac",))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "bundle")
    assert Bundle.open(tmp_path / "bundle").source.frames == 6


def test_in_a_browser(url: str, source: Path) -> None:
    with browser_page(url) as page:
        page.click("#fit")
        page.wait_for_selector("text=Upload a clip of a few seconds.")
        page.set_input_files("#clip input[type=file]", str(source))
        page.wait_for_selector("#clip >> text=garden")
        page.fill("#steps input[type=number]", "40")
        page.click("#fit")
        page.wait_for_selector("#measures .quality", timeout=120_000)
        page.wait_for_selector("#images img")
        page.wait_for_selector("#archive >> text=bundle")
        assert page.locator("#measures .quality tr").count() == 5
        assert page.locator("#measures .advice").count() == 1
