"""From a video to a bundle: what is trained on what, and the same bundle however often the work was cut off."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_efficient.video import fit as fit_module
from hf_efficient.video.bundle import Bundle
from hf_efficient.video.fit import Fit, fit_video
from hf_efficient.video.media import MediaError, probe, read_frames
from hf_efficient.video.overfit import Recipe, load_checkpoint, masked_l1, overfit
from hf_efficient.video.patches import degrade, to_rgb8, to_tensor, upsample_bicubic
from hf_efficient.video.player import Player
from hf_efficient.video.settings import FitSettings
from hf_efficient.video.store import PatchStore
from hf_efficient.video.writing import VideoWriter
from tests.video.bundles import QUICK, source_clip
from tests.video.clips import make_clip, pictures

LOSSLESS = {"lr_quality": 0}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def started(tmp_path: Path, **settings: Any) -> Fit:
    """The stages of a fit, before training."""
    known = {k: v for k, v in {**QUICK, **settings}.items() if k in FitSettings.__dataclass_fields__}
    fit = Fit(source_clip(tmp_path), tmp_path / "bundle", FitSettings(**known), False, torch.device("cpu"))
    fit.prepare(overwrite=False)
    fit.make_low_resolution()
    fit.score()
    return fit


def test_patches_are_the_video(tmp_path: Path) -> None:
    fit = started(tmp_path, method="stdo", num_chunks=2, halo=3, max_patches=10_000)
    fit.make_stores()
    pairs, g, per_frame = list(fit._pairs()), fit.geometry, fit.geometry.rows * fit.geometry.columns
    labels, _ = fit.plan.labels()
    for m in range(2):
        numbers, store = np.flatnonzero(labels == m), PatchStore(fit.work / f"expert-{m}")
        assert len(store) == len(numbers) > 0
        lr, hr, mask = store.batch(np.arange(len(store)))
        for n, number in enumerate(numbers.tolist()):
            t, i, j = number // per_frame, number % per_frame // g.columns, number % g.columns
            y = min(max(i * g.patch_height - 3, 0), g.lr_height - lr.shape[2])
            x = min(max(j * g.patch_width - 3, 0), g.lr_width - lr.shape[3])
            torch.testing.assert_close(lr[n], pairs[t].lr[0, :, y : y + lr.shape[2], x : x + lr.shape[3]])
            window = pairs[t].hr[0, :, 2 * y : 2 * (y + lr.shape[2]), 2 * x : 2 * (x + lr.shape[3])]
            torch.testing.assert_close(hr[n], window)
            inside = mask[n, 0].nonzero()
            top = 0 if y == 0 else 6
            left = 0 if x == 0 else 6
            assert inside.min(0).values.tolist() == [top, left]


def test_every_patch_of_the_video_is_somebodys(tmp_path: Path) -> None:
    fit = started(tmp_path, method="stdo", num_chunks=3, max_patches=10**6)
    chosen = fit.plan.chosen_patches()
    experts = np.concatenate([v for k, v in chosen.items() if k != "general"])
    assert sorted(experts.tolist()) == list(range(fit.plan.errors.size))
    assert chosen["general"].tolist() == list(range(fit.plan.errors.size))
    assert sum(r.steps for r in fit.plan.recipes().values()) <= fit.settings.steps


def test_joint_training_leaves_the_easiest_out(tmp_path: Path) -> None:
    fit = started(tmp_path, max_patches=10**6)
    labels, k = fit.plan.labels()
    (numbers,) = fit.plan.chosen_patches().values()
    counts = np.bincount(labels[numbers], minlength=k) / np.bincount(labels, minlength=k)
    np.testing.assert_allclose(counts, [1, 2 / 3, 1 / 3, 0], atol=0.05)
    assert fit.plan.recipes()["expert-0"].steps == fit.settings.steps


def test_loss_by_hand() -> None:
    output, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 1:3, 1:3], mask[1] = 1, 1
    target[0, :, 1, 1], target[0, :, 0, 0] = 0.4, 9.0  # one of four pixels that count, one that does not
    target[1] = 0.2
    assert masked_l1(output, target, mask).item() == pytest.approx((0.1 + 0.2) / 2)


def test_learning_rate_is_the_papers_cosine() -> None:
    recipe = Recipe(steps=100, learning_rate=1e-3)
    assert recipe.rate(0) == pytest.approx(1e-3)
    assert recipe.rate(50) == pytest.approx((1e-3 + 4e-8) / 2)
    assert recipe.rate(100) == pytest.approx(4e-8)


def test_two_processes_average_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's gradients summed by hand in place of all_reduce: the step is that of the whole batch."""
    fit = started(tmp_path)
    fit.make_stores()
    store, recipe = PatchStore(fit.work / "expert-0"), Recipe(steps=1, batch_size=4)
    alone = overfit(fit.new_network(fit.plan.spec("expert-0"), 0), store, recipe, tmp_path / "alone.pt")
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(
            "hf_efficient.video.overfit.average_gradients",
            lambda net, n: halves.append([p.grad.clone() for p in net.parameters()]),
        )
        overfit(fit.new_network(fit.plan.spec("expert-0"), 0), store, recipe, tmp_path / f"{rank}.pt", None, (rank, 2))
    net = fit.new_network(fit.plan.spec("expert-0"), 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.rate(0))
    for p, first, second in zip(net.parameters(), *halves, strict=True):
        p.grad = (first + second) / 2
    optimizer.step()
    for (name, ours), theirs in zip(net.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", ["jstdo", "stdo", "single", "time"])
def test_training_beats_bicubic(tmp_path: Path, method: str) -> None:
    source = make_clip(tmp_path / "a.mp4", pictures(10, 96, 80))
    settings: dict[str, Any] = {**QUICK, "num_features": 8, "steps": 150, "batch_size": 8, "num_chunks": 2, **LOSSLESS}
    player = Player(fit_video(source, tmp_path / "bundle", **{**settings, "method": method}))
    truth = [frame.rgb.astype(float) for frame in read_frames(source)]
    small = [to_tensor(frame.rgb) for frame in read_frames(player.bundle.low_resolution)]
    bicubic = np.mean([(to_rgb8(upsample_bicubic(x, 2)) - y) ** 2 for x, y in zip(small, truth, strict=True)])
    ours = np.mean([(x.rgb - y) ** 2 for x, y in zip(player.frames(), truth, strict=True)])
    assert 10 * np.log10(bicubic / ours) > 0.1


def run_forked(source: Path, output: Path, settings: dict[str, Any]) -> None:
    fit_video(source, output, **settings)


@pytest.mark.parametrize("settings", [{"method": "jstdo"}, {"method": "stdo", "num_chunks": 2}])
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    source = source_clip(tmp_path)
    chosen = {**QUICK, **settings, "steps": 60, "num_features": 8}
    fork, rng = get_context("fork"), random.Random(0)
    started = time.perf_counter()
    reference = files(fit_video(source, tmp_path / "reference", **chosen).path)
    seconds = time.perf_counter() - started
    kills = 0
    while kills < 10:
        child = fork.Process(target=run_forked, args=(source, tmp_path / "bundle", chosen))
        child.start()
        time.sleep(rng.uniform(0, 0.35 * seconds))
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        if (tmp_path / "bundle").exists():  # it was done: start anew, until there were enough kills
            assert files(tmp_path / "bundle") == reference
            for path in (tmp_path / "bundle").rglob("*.*"):
                path.unlink()
            (tmp_path / "bundle" / "model").rmdir()
            (tmp_path / "bundle").rmdir()
    resumed = fit_video(source, tmp_path / "bundle", **chosen)
    assert files(resumed.path) == reference
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "reference", "source.mp4"]


def test_training_resumes_at_its_checkpoint(tmp_path: Path) -> None:
    fit = started(tmp_path)
    fit.make_stores()
    store, recipe = PatchStore(fit.work / "expert-0"), Recipe(steps=9, batch_size=4, checkpoint_every=4)

    class Stop(Exception):
        pass

    def stop_at(step: int) -> Any:
        counts = iter(range(100))

        def progress(done: int) -> None:
            if done and next(counts) == step:
                raise Stop

        return progress

    whole = overfit(fit.new_network(fit.plan.spec("expert-0"), 0), store, recipe, tmp_path / "whole.pt")
    with pytest.raises(Stop):
        overfit(fit.new_network(fit.plan.spec("expert-0"), 0), store, recipe, tmp_path / "cut.pt", stop_at(5))
    net = fit.new_network(fit.plan.spec("expert-0"), 0)
    assert load_checkpoint(tmp_path / "cut.pt", net) == 4
    done: list[int] = []
    resumed = overfit(net, store, recipe, tmp_path / "cut.pt", done.append)
    assert done == [4, 1, 1, 1, 1, 1]
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_there_is_not_lost(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    fit_video(source, tmp_path / "bundle", **QUICK)
    before = files(tmp_path / "bundle")
    with pytest.raises(FileExistsError, match="exists"):
        fit_video(source, tmp_path / "bundle", **QUICK)
    assert files(tmp_path / "bundle") == before
    fit_video(source, tmp_path / "bundle", **{**QUICK, "steps": 4}, overwrite=True)
    assert files(tmp_path / "bundle") != before


def test_unfinished_work_of_other_settings_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_clip(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "overfit", fail)
        with pytest.raises(KeyboardInterrupt):
            fit_video(source, tmp_path / "bundle", **QUICK)
    with pytest.raises(FileExistsError, match="steps: 8 then, 6 now"):
        fit_video(source, tmp_path / "bundle", **{**QUICK, "steps": 6})
    assert fit_video(source, tmp_path / "bundle", **QUICK).sizes()


def test_a_kill_at_the_very_end_is_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, tidy = source_clip(tmp_path), shutil.rmtree

    def fail(path: Path, **options: Any) -> None:
        if path.name == "bundle.partial" and (path / "expert-0").exists():
            tidy(path / "expert-0")
            raise KeyboardInterrupt
        tidy(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(KeyboardInterrupt):
            fit_video(source, tmp_path / "bundle", **QUICK)
    before = files(tmp_path / "bundle")
    fit_video(source, tmp_path / "bundle", **QUICK)
    assert files(tmp_path / "bundle") == before
    assert not (tmp_path / "bundle.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"method": "jstdo"}, {"method": "stdo", "num_chunks": 2}])
def test_two_processes_make_the_bundle_of_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Under torchrun, gradients averaged or networks shared out, against one process."""
    source, chosen = source_clip(tmp_path), {**QUICK, **settings, "weight_dtype": "float32"}
    script = tmp_path / "fit.py"
    script.write_text(
        f"from hf_efficient import fit_video\nfit_video({str(source)!r}, {str(tmp_path / 'two')!r}, **{chosen!r})\n"
    )
    command: list[Any] = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29533",
        script,
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    one, two = (load_file(b.model / "model.safetensors") for b in
                (fit_video(source, tmp_path / "one", **chosen), Bundle.open(tmp_path / "two")))  # fmt: skip
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-3, rtol=0, msg=name)


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (64, 2)])
@pytest.mark.parametrize("frames", [1, 3])
def test_any_size_and_a_single_frame(tmp_path: Path, size: tuple[int, int], frames: int) -> None:
    lossless: dict[str, Any] = {"codec": "libx264rgb", "pixel_format": "rgb24", "options": {"qp": "0"}}
    source = make_clip(tmp_path / "a.mkv", pictures(frames, *size), **lossless)
    bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    assert (bundle.source.width, bundle.source.height, bundle.source.frames) == (*size, frames)


@pytest.mark.parametrize("backbone", ["espcn", "edsr", "srcnn", "vdsr"])
def test_other_backbones(tmp_path: Path, backbone: str) -> None:
    for dtype in ("float32", "float16", "int8"):
        settings = {**QUICK, "backbone": backbone, "scale": 3, "weight_dtype": dtype}
        bundle = fit_video(source_clip(tmp_path), tmp_path / dtype, **settings)
        assert bundle.manifest["experts"][0]["psnr_stored"] > 5
    sizes = [Bundle.open(tmp_path / d).sizes()["model/model.safetensors"] for d in ("float32", "float16", "int8")]
    assert sizes[0] > sizes[1] > sizes[2]


def test_each_chunk_may_have_its_own_size(tmp_path: Path) -> None:
    settings = {**QUICK, "method": "stdo", "num_chunks": 2, "num_features": [6, 3], "edges": "error"}
    bundle = fit_video(source_clip(tmp_path), tmp_path / "bundle", **settings)
    shares = [e["error_share"] for e in bundle.manifest["experts"]]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_source_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    whole, cut = make_clip(tmp_path / "a.mp4", pictures(30, 128, 96), options={"crf": "1"}), tmp_path / "cut.mp4"
    with VideoWriter(cut, probe(whole), (128, 96), options={"crf": "1"}) as writer:  # its index comes first
        for frame in read_frames(whole):
            writer.write(*frame)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    with pytest.raises(MediaError):
        fit_video(cut, tmp_path / "bundle", **QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "cut.mp4"]


def test_bad_sources_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError):
        fit_video(tmp_path / "a.mp4", tmp_path / "bundle", **QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "nas"}, "method='nas' is not known"),
        ({"scale": 1}, "scale=1"),
        ({"steps": 0}, "steps=0"),
        ({"num_chunks": "many"}, "num_chunks='many'"),
        ({"learning_rate": 2.0}, "learning_rate=2.0"),
        ({"lr_codec": "libx265", "lr_quality": 0}, "lossless"),
        ({"num_features": [4, 5]}, "a list needs"),
        ({"num_blocks": 0}, "num_blocks=0"),
    ],
)
def test_impossible_settings_are_refused_first(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_video("gone.mp4", "bundle", **settings)


def test_an_untagged_720p_video_keeps_its_colours(tmp_path: Path) -> None:
    frames = np.full((1, 720, 1280, 3), (200, 40, 60), np.uint8)
    source = make_clip(tmp_path / "a.mp4", frames, pixel_format="yuv444p")
    fit = Fit(source, tmp_path / "bundle", FitSettings(), False, torch.device("cpu"))
    fit.prepare(overwrite=False)
    fit.make_low_resolution()
    large, small = (next(read_frames(path)).rgb[100, 100].astype(int) for path in (source, fit.low_resolution))
    assert np.abs(large - small).max() <= 3


def test_lossless_low_resolution_is_the_degraded_video(tmp_path: Path) -> None:
    fit = started(tmp_path, **LOSSLESS)
    for lr, hr in fit._pairs():
        assert torch.equal(lr, degrade(hr, fit.geometry))
        assert upsample_bicubic(lr, 2).shape == hr.shape
