"""`hf-efficient stdo` as a user runs it."""

import json
import math
from pathlib import Path

import av
import pytest

from hf_efficient.cli import main
from hf_efficient.cli.output import as_json
from hf_efficient.cli.stdo import perceived, verdict
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import probe
from tests.cli.shell import error_of
from tests.video.bundles import source_clip
from tests.video.clips import make_clip, moving_frames

FEW = ["--steps", "6", "--batch-size", "4", "--device", "cpu"]
QUICK = [*FEW, "--method", "jstdo", "--num-features", "4", "--num-blocks", "1"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    folder = source.parent / "bundle"
    assert main(["stdo", "encode", str(source), str(folder), *QUICK, "--method", "stdo", "--num-chunks", "2"]) == 0
    return folder


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        assert sound.duration
        assert sound.time_base
        return float(sound.duration * sound.time_base)


def test_the_default_sends_a_delta_to_a_general_network(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stdo", "encode", str(source), str(tmp_path / "small"), *FEW]) == 0
    assert main(["stdo", "info", str(tmp_path / "small")]) == 0
    printed = capsys.readouterr().out
    assert "<- taken" in printed
    assert "method delta" in printed
    with pytest.raises(SystemExit):
        main(["stdo", "encode", "--help"])
    assert "(default: delta)" in " ".join(capsys.readouterr().out.split())


def test_a_bundle_has_two_sums_and_both_are_named(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stdo", "info", str(bundle), "--json", str(tmp_path / "info.json")]) == 0
    found = json.loads((tmp_path / "info.json").read_text())
    played = {name: (bundle / name).stat().st_size for name in found["files"]}
    assert found["files"] == played
    assert found["bytes_to_play"] == sum(played.values())
    assert found["bytes_of_folder"] == sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    printed = capsys.readouterr().out
    assert f"{found['bytes_to_play']:,} to play, {found['kilobits_per_second']:.0f} kbit/s" in printed
    assert f"{found['bytes_of_folder']:,} in the folder" in printed
    assert "in all" not in printed


def test_there_and_back(source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stdo", "decode", str(bundle), str(tmp_path / "out.mp4")]) == 0
    played, before = probe(tmp_path / "out.mp4"), probe(source)
    assert (played.width, played.height, played.frames) == (before.width, before.height, before.frames)
    durations = [sound_seconds(path) for path in (source, tmp_path / "out.mp4")]
    assert durations[0] == pytest.approx(durations[1], abs=1e-3)
    assert "exists" in error_of(capsys, "stdo", "decode", bundle, tmp_path / "out.mp4")


def test_info_says_what_is_there(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["stdo", "info", str(bundle)]) == 0
    printed = capsys.readouterr().out
    for word in ("source.mp4", "96x80, 12 frames", "48x40", "2 x wdsr", "float16", "method stdo", "network 1"):
        assert word in printed
    total = sum(Bundle.open(bundle).sizes().values())
    assert f"{total:,} to play" in printed


def test_evaluate_writes_table_json_and_plot(
    source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stdo", "evaluate", str(bundle), str(source), "--output", str(tmp_path)]) == 0
    assert "| stdo |" in capsys.readouterr().out
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["frames"] == 12
    assert (tmp_path / "evaluation.png").stat().st_size > 5000
    assert "not the video" in error_of(
        capsys, "stdo", "evaluate", bundle, make_clip(tmp_path / "other.mp4", moving_frames(3, 96, 80))
    )


def test_flicker_is_left_out_where_nothing_stands_still() -> None:
    moving = {"ssim": 0.9, "flicker": float("nan"), "vmaf": 80.0, "vmaf_neg": 79.0}
    assert perceived(moving) == "0.9000 |  | 80.00 | 79.00"
    assert perceived({**moving, "flicker": 0.5}) == "0.9000 | 0.50 | 80.00 | 79.00"
    written = as_json({"stdo": moving, "chunks": [moving], "frames": 3})
    assert json.loads(written)["stdo"] == json.loads(written)["chunks"][0] == {**moving, "flicker": None}


def test_only_a_bundle_may_be_overwritten_and_only_there_is_it_advised(
    source: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "overwrite it (--overwrite)" in error_of(capsys, "stdo", "encode", source, bundle, *FEW)
    (tmp_path / "notes.txt").write_text("mine")
    told = error_of(capsys, "stdo", "encode", source, tmp_path, *FEW)
    assert "not a bundle" in told
    assert "name another folder" in told
    assert "--overwrite" not in told


@pytest.mark.parametrize(
    ("psnr", "said"),
    [
        ((31.0, 30.0, 30.5, 28.0), "the bundle is 0.50 dB ahead of stream, bicubic"),
        ((31.0, 31.25, 30.0, 30.0), "the network does not pay: general enlarges 0.25 dB better"),
        ((31.0, 30.0, 30.0, 37.5), "libx264 alone is 6.50 dB better at these bytes: send that"),
    ],
)
def test_a_comparison_says_what_to_send(psnr: tuple[float, ...], said: str) -> None:
    assert said in verdict(compared(psnr))


def compared(psnr: tuple[float, ...], codec_bytes: int = 900) -> list[tuple[str, int, float]]:
    names, sizes = ("stdo", "stream, general", "stream, bicubic", "libx264"), (1000, 800, 800, codec_bytes)
    return list(zip(names, sizes, psnr, strict=True))


def test_a_codec_that_is_larger_than_the_bundle_is_not_advised() -> None:
    """At its worst quality it may be: then it is not "better at these bytes"."""
    said = verdict(compared((31.0, 30.0, 30.5, 37.5), codec_bytes=1001))
    assert said.startswith("By PSNR the bundle is 0.50 dB ahead of stream, bicubic.")
    assert "not compared: libx264" in said
    assert "not compared" not in verdict(compared((31.0, 30.0, 30.5, 37.5), codec_bytes=1000))


@pytest.mark.parametrize("psnr", [(31.0, 30.0, 30.5, 31.004), (31.0, 30.0, 30.5, 30.996), (31.0, 30.0, 31.0, 30.0),
                                  (math.inf, 30.0, 30.5, math.inf)])  # fmt: skip
def test_what_the_table_shows_as_equal_is_level(psnr: tuple[float, ...]) -> None:
    assert verdict(compared(psnr)).startswith("By PSNR the bundle is level with ")


def test_compare_gives_codecs_the_same_bytes(source: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stdo", "compare", str(bundle), str(source), "--codecs", "libx264"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [line.split("|") for line in lines if line.startswith("|") and "," in line]
    rows = {row[1].strip(): int(row[2].replace(",", "")) for row in cells if row[2].strip()[0].isdigit()}
    assert rows["libx264"] <= rows["stdo"] == sum(Bundle.open(bundle).sizes().values())


def test_a_budget_is_kept(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, folder in (("300kbps", "a"), ("410kbps", "b")):
        options = [*QUICK, "--scale", "2", "--lr-codec", "libx264", "--budget", rate]
        assert main(["stdo", "encode", str(source), str(tmp_path / folder), *options]) == 0
    low, high = (Bundle.open(tmp_path / folder) for folder in "ab")
    spent = [sum(b.sizes().values()) * 8 / b.source.seconds for b in (low, high)]
    assert spent[0] <= 300_000 < spent[1] <= 410_000
    for rate, told in (("10kbps", "10 kbit/s are too few"), ("400", "0.4 kbit/s are too few")):
        assert told in error_of(capsys, "stdo", "encode", source, tmp_path / "c", *QUICK, "--budget", rate)
    assert "not a bit rate" in error_of(capsys, "stdo", "encode", source, tmp_path / "c", "--budget", "fast")
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_a_budget_walks_scales_and_codecs_for_vmaf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clip(tmp_path / "source.mp4", moving_frames(8, 256, 192))
    options = ["--budget", "600kbps", "--optimize", "vmaf", "--codecs", "libx264", "libx265"]
    assert main(["stdo", "encode", str(source), str(tmp_path / "a"), *FEW, "--lr-preset", "ultrafast", *options]) == 0
    offers = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" VMAF")]
    for name in ("x1.5 by the general network, libx264", "x2 by the general network, libx265", "libx264 alone"):
        assert any(name in line for line in offers)
    assert not any("libsvtav1" in line for line in offers)
    values = [float(line.split()[-2]) for line in offers]
    assert offers[values.index(max(values))].startswith("->")
    alone = "alone" in offers[values.index(max(values))]
    assert (tmp_path / "a.mkv").exists() == alone
    assert (tmp_path / "a").exists() == (not alone)


def test_bad_input_is_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert "cannot be read as video" in error_of(capsys, "stdo", "encode", tmp_path / "text.mp4", tmp_path / "b")
    assert "no file" in error_of(capsys, "stdo", "encode", tmp_path / "gone.mp4", tmp_path / "b")
    assert "--scale: invalid choice: 7" in error_of(capsys, "stdo", "encode", source, tmp_path / "b", "--scale", "7")
    assert "not a bundle" in error_of(capsys, "stdo", "decode", tmp_path, tmp_path / "out.mp4")
    assert "not a bundle" in error_of(capsys, "stdo", "info", tmp_path)
    assert "invalid" in error_of(capsys, "stdo", "encode", source, tmp_path / "b", "--steps", "many")
    for option, value in (("--optimize", "psnr"), ("--codecs", "libx264")):
        told = error_of(capsys, "stdo", "encode", source, tmp_path / "b", option, value)
        assert f"{option} is read only with --budget" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.mp4"]
