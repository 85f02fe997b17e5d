"""The player on onnxruntime: it plays what its networks make of the stream, and needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from hf_efficient.video.export.archive import write_archive
from hf_efficient.video.export.folder import RECORD, Export
from hf_efficient.video.export.player import OnnxPlayer, main
from hf_efficient.video.files.manifest import BundleError
from hf_efficient.video.files.reader import probe, read_frames
from tests.video.export.made import COUNT, HEIGHT, WIDTH, made_export

# runs a file as Python would, where nothing but onnxruntime, PyAV and numpy can be imported
BARE = """
import runpy, sys
for name in ("torch", "transformers", "safetensors", "huggingface_hub", "PIL", "diffusers"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("networks", [1, 2])
def test_each_patch_is_enlarged_by_its_network(networks: int, tmp_path: Path) -> None:
    folder, labels = made_export(tmp_path / "export", networks)
    player = OnnxPlayer(folder, threads=1)
    played = list(player.frames())
    assert len(played) == COUNT
    for frame, low, mine in zip(played, read_frames(folder / "low_resolution.mp4"), labels, strict=True):
        large = low.rgb.repeat(2, 0).repeat(2, 1)
        inverted = mine.repeat(26, 0).repeat(24, 1)[: large.shape[0], : large.shape[1], None] == 1
        expected = np.where(inverted, 255 - large, large)[:HEIGHT, :WIDTH]
        np.testing.assert_array_equal(frame.rgb, expected)
    assert [f.pts for f in played] == [f.pts for f in read_frames(folder / "low_resolution.mp4")]


def test_one_file_plays_where_there_is_no_torch(tmp_path: Path) -> None:
    folder, _ = made_export(tmp_path / "export", 2)
    write_archive(tmp_path / "player.pyz")
    command = [sys.executable, "-I", "-c", BARE, str(tmp_path / "player.pyz")]
    folders = [str(folder), str(tmp_path / "out.mkv"), "--codec", "ffv1"]
    run = subprocess.run([*command, *folders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    video = probe(tmp_path / "out.mkv")
    assert (video.width, video.height, video.frames, video.other_streams) == (WIDTH, HEIGHT, COUNT, ("aac",))
    run = subprocess.run([*command, str(tmp_path), str(tmp_path / "b.mkv")], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "is not an exported bundle" in run.stderr


def test_damage_is_named(tmp_path: Path) -> None:
    folder, _ = made_export(tmp_path / "export", 2)
    record = json.loads((folder / RECORD).read_text())

    def error_with(**changed: object) -> str:
        (folder / RECORD).write_text(json.dumps({**record, **changed}))
        with pytest.raises(BundleError) as error:
            Export.open(folder)
        return str(error.value)

    assert "this player knows" in error_with(version=2)
    assert "this player knows" in error_with(conversion=1)
    assert "networks" in error_with(networks=[])
    assert "file='/etc/passwd'" in error_with(networks=[{"file": "/etc/passwd", "radius": 0, "tile": 9}])
    assert "expected 144x94" in error_with(source={**record["source"], "width": 287, "height": 187})
    (folder / "routing.bin").rename(tmp_path / "aside")
    assert "routing.bin is missing" in error_with()
    (tmp_path / "aside").rename(folder / "routing.bin")
    (folder / "networks" / "0.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="not the file that was exported"):
        Export.open(folder)


def test_an_output_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = made_export(tmp_path / "export")
    (tmp_path / "mine.mp4").write_bytes(b"mine")
    assert main([str(folder), str(tmp_path / "mine.mp4")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "mine.mp4").read_bytes() == b"mine"
