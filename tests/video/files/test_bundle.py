"""Bundles played, and bundles that somebody damaged or made to do harm."""

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_efficient import STDOPipeline
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.manifest import BundleError, checked_files, write_manifest
from hf_efficient.video.files.reader import MediaError, read_frames
from hf_efficient.video.play.decode import decode
from hf_efficient.video.play.player import Player
from tests.fuzzing import limited_memory
from tests.video.bundles import QUICK, on_whole_frames, quick_bundle
from tests.video.clips import make_clip, moving_frames, packets


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return quick_bundle(tmp_path_factory.mktemp("stdo"), method="stdo", num_chunks=3)


def copy_of(bundle: Bundle, folder: Path) -> Path:
    shutil.copytree(bundle.path, folder / "copy")
    return folder / "copy"


def sign(folder: Path) -> None:
    """Checksums that fit whatever lies in the folder: what somebody who means harm would do."""
    manifest = json.loads((folder / "bundle.json").read_text())
    write_manifest(folder, manifest["low_resolution"], manifest["source"])


def test_decoded_video_plays_and_has_all_of_the_source(bundle: Bundle, tmp_path: Path) -> None:
    source, output = bundle.path.parent / "source.mp4", decode(bundle.path, tmp_path / "out.mp4")
    check = subprocess.run(["ffmpeg", "-v", "error", "-i", output, "-f", "null", "-"], capture_output=True, text=True)
    assert (check.returncode, check.stderr) == (0, "")
    ours, theirs = list(read_frames(output)), list(read_frames(source))
    assert [f.pts for f in ours] == [f.pts for f in theirs]
    assert ours[0].rgb.shape == theirs[0].rgb.shape
    assert [data for _, data in packets(output, "audio")] == [data for _, data in packets(source, "audio")]
    error = np.mean([(a.rgb.astype(float) - b.rgb) ** 2 for a, b in zip(ours, theirs, strict=True)])
    assert 10 * np.log10(255**2 / error) > 18


def test_visually_lossless_is_near_the_networks_frames(bundle: Bundle, tmp_path: Path) -> None:
    output = decode(bundle.path, tmp_path / "out.mp4")
    pairs = zip(read_frames(output), Player(bundle).frames(), strict=True)
    error = np.mean([(a.rgb.astype(float) - b.rgb) ** 2 for a, b in pairs])
    assert 10 * np.log10(255**2 / error) > 33  # what halving the chroma of such colours costs
    exact = decode(bundle.path, tmp_path / "out.mkv", codec="ffv1")
    with av.open(str(exact)) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"


def test_decoding_is_deterministic(bundle: Bundle, tmp_path: Path) -> None:
    written = set()
    for n in range(6):
        noise = [np.random.default_rng(n).bytes(100_000) for _ in range(20)]  # other rubbish in fresh memory each time
        del noise
        written.add(decode(bundle.path, tmp_path / f"{n}.mp4").read_bytes())
    assert len(written) == 1


def test_time_stamps_sizes_and_tags_survive_the_whole_way(tmp_path: Path) -> None:
    pts = [0, 40, 80, 200, 1000]
    source = make_clip(
        tmp_path / "a.mp4", moving_frames(5, 66, 50), pts=pts, time_base=Fraction(1, 1000), rotation=90,
        aspect=Fraction(4, 3), color=(1, 1, 1, 1),
    )  # fmt: skip
    info = fit_video(source, tmp_path / "bundle", **QUICK).source
    output = decode(tmp_path / "bundle", tmp_path / "out.mp4")
    before, after = Bundle.open(tmp_path / "bundle").source, info
    assert before == after
    from hf_efficient.video.files.reader import probe

    played = probe(output)
    for name in ("width", "height", "rotation", "pixel_aspect", "color", "frames"):
        assert getattr(played, name) == getattr(info, name), name
    assert [round(f.pts * played.time_base * 1000) for f in read_frames(output)] == pts


def test_frames_are_those_of_the_map(bundle: Bundle) -> None:
    """The player against whole frames of each network and a choice by the unpacked map."""
    player = Player(bundle)
    g, s = player.geometry, player.config.scale
    frames = zip(player.frames(), read_frames(bundle.low_resolution), player.labels(), strict=True)
    for played, low, labels in frames:
        x = torch.from_numpy(low.rgb).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            whole = [on_whole_frames(net, x) for net in player.experts]
        expected = torch.empty_like(whole[0])
        for i in range(g.rows):
            for j in range(g.columns):
                rows = slice(i * g.patch_height * s, (i + 1) * g.patch_height * s)
                columns = slice(j * g.patch_width * s, (j + 1) * g.patch_width * s)
                expected[..., rows, columns] = whole[labels[i, j]][..., rows, columns]
        rounded = (expected[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        difference = np.abs(played.rgb - rounded[: bundle.source.height, : bundle.source.width])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3  # halves that rounding sends either way


def test_a_changed_or_missing_file_is_reported(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_of(bundle, tmp_path)
    for name in checked_files(bundle.low_resolution.name):
        path, data = folder / name, (folder / name).read_bytes()
        for broken in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""):
            path.write_bytes(broken)
            with pytest.raises(BundleError, match="not the file"):
                Bundle.open(folder)
        path.unlink()
        with pytest.raises(BundleError, match="missing"):
            Bundle.open(folder)
        path.write_bytes(data)
    assert Bundle.open(folder).sizes() == bundle.sizes()
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path)


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("bundle.json", {"version": 3}, "version 3"),
    ("bundle.json", {"conversion": 1}, "darker by 1.3 of 255. Encode the video again"),
    ("bundle.json", {"conversion": 3}, "conversion 3 .*Upgrade"),
    ("bundle.json", {"conversion": "2"}, "conversion '2'"),
    ("bundle.json", {"format": "zip"}, "format"),
    ("bundle.json", {"low_resolution": "../../etc/passwd"}, "damaged"),
    ("source", {"width": 10**6, "height": 10**6}, "damaged"),
    ("source", {"width": 97 * 2}, "needs"),
    ("source", {"frames": 10**12}, "damaged"),
    ("source", {"frames": 11}, "11 frames"),
    ("source", {"frames": 13}, "13 frames"),
    ("source", {"time_base": "1/0"}, "damaged"),
    ("source", {"time_base": "0"}, "damaged"),
    ("source", {"rate": 25.0}, "damaged"),
    ("source", {"color": [1, 1]}, "damaged"),
    ("source", {"seconds": float("nan")}, "damaged"),
    ("source", {"seconds": "3"}, "damaged"),
    ("source", {"name": ["a"]}, "damaged"),
    ("source", {"sha256": 1}, "damaged"),
    ("source", {"other_streams": {"a": 1}}, "damaged"),
    ("source", {"other_streams": [1]}, "damaged"),
    ("source", {"color": ["1", 1, 1, 1]}, "damaged"),
    ("bundle.json", {"source": [1]}, "damaged"),
    ("bundle.json", {"files": None}, "damaged"),
    ("bundle.json", {"low_resolution": ["low_resolution.mp4"]}, "damaged"),
    ("bundle.json", {"fit": [1]}, "fit"),
    ("bundle.json", {"fit": {"alpha": ["drop"]}}, "alpha"),
    ("bundle.json", {"fit": {"interlaced": "maybe"}}, "interlaced"),
    ("bundle.json", {"fit": {"method": 3}}, "method"),
    ("bundle.json", {"fit": {"steps": "many"}}, "steps"),
    ("bundle.json", {"fit": {"steps": [8]}}, "steps"),
    ("bundle.json", {"fit": {"learning_rate": None}}, "learning_rate"),
    ("bundle.json", {"experts": {"a": 1}}, "experts"),
    ("bundle.json", {"experts": []}, "experts describes 0 networks"),
    ("bundle.json", {"experts": [1, 2]}, "experts: 0"),
    ("bundle.json", {"experts": [{"patches": 1}]}, "experts: 0: steps"),
    ("bundle.json", {"general_patch_psnr": "30"}, "general_patch_psnr"),
    ("bundle.json", {"general_patch_psnr": float("nan")}, "general_patch_psnr"),
    ("config", {"scale": 2.0}, "scale"),
    ("config", {"num_experts": 10**6}, "num_experts"),
    ("config", {"num_features": 1024, "num_blocks": 256}, "does not belong|does not fit"),
    ("config", {"num_features": [4, 4]}, "name"),
    ("config", {"num_features": "4"}, "num_features|name"),
    ("config", {"num_features": None}, "num_features"),
    ("config", {"backbone": ["wdsr"]}, "backbone"),
    ("config", {"backbone": "os.system"}, "backbone"),
    ("config", {"scale": 4}, "needs|belong|fit"),
    ("config", {"patch_width": 0}, "patch_width"),
    ("config", {"patch_width": 7}, "map"),
    ("config", {"model_type": "llama"}, "model_type"),
    ("config", {"weight_dtype": "int4"}, "weight_dtype"),
    ("config", {"routing_bytes": 3}, "routing"),
]


@pytest.mark.parametrize(("where", "change", "message"), HOSTILE)
def test_hostile_values_are_reported_though_the_checksums_fit(
    bundle: Bundle, tmp_path: Path, where: str, change: dict[str, Any], message: str
) -> None:
    folder = copy_of(bundle, tmp_path)
    path = folder / ("model/config.json" if where == "config" else "bundle.json")
    values = json.loads(path.read_text())
    (values["source"] if where == "source" else values).update(change)
    path.write_text(json.dumps(values))
    if where == "config":
        sign(folder)
    with pytest.raises((BundleError, MediaError), match=message):
        decode(folder, tmp_path / "out.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize("change", [{"model": ["os", "system"]}, {"_class_name": "Other"}, {"vae": ["a", "b"]}, [1]])
def test_diffusers_is_given_no_other_index_than_ours(bundle: Bundle, tmp_path: Path, change: Any) -> None:
    folder = copy_of(bundle, tmp_path)
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change} if isinstance(change, dict) else change))
    with pytest.raises(BundleError, match=r"model_index\.json"):
        STDOPipeline.from_pretrained(folder)


def test_a_config_that_is_not_that_of_the_weights_builds_no_model(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_of(bundle, tmp_path)
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_features": 1024, "num_blocks": 256}))
    with limited_memory(2**30), pytest.raises(ValueError, match="does not belong to its config"):
        AutoModel.from_pretrained(folder / "model")


def test_hostile_weights_and_streams_are_reported(bundle: Bundle, tmp_path: Path) -> None:
    folder = copy_of(bundle, tmp_path)
    weights = folder / "model" / "model.safetensors"
    good = load_file(weights)
    name = next(n for n in good if n.endswith("head.weight"))
    infinite, torn = dict(good), dict(good)
    infinite[name] = good[name].clone().fill_(float("nan"))
    torn["routing"] = good["routing"].flip(0)
    for state, message in ((infinite, "finite"), (torn, "routing map")):
        save_file({k: v.contiguous() for k, v in state.items()}, weights)
        sign(folder)
        with pytest.raises(BundleError, match=message):
            decode(folder, tmp_path / "out.mp4")
    weights.write_bytes(b"\xff" * 7 + b"\x00" + b"{}")
    sign(folder)
    with pytest.raises(BundleError, match="damaged"):
        decode(folder, tmp_path / "out.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1"])
def test_other_codecs_in_and_out(tmp_path: Path, codec: str) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(4, 160, 144))
    fit_video(source, tmp_path / "bundle", **{**QUICK, "lr_codec": codec, "lr_preset": "", "lr_quality": 20})
    output = decode(tmp_path / "bundle", tmp_path / "out.mkv", codec=codec, quality=20)
    assert sum(1 for _ in read_frames(output)) == 4
