"""Overfitting a network: loss, learning rate, several processes, and that it helps."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_efficient.methods import VIDEO, settings_of
from hf_efficient.video.encode.fit import Fit, fit_video
from hf_efficient.video.encode.overfit import Recipe, overfit, store_error
from hf_efficient.video.encode.patch_store import PatchStore
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.patches import to_rgb8, to_tensor
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import STARTS, FitSettings
from tests.video.bundles import QUICK, source_clip, started
from tests.video.clips import clip, make_clip, moving_frames

LOSSLESS = {"lr_quality": 0}


def test_a_step_is_adam_on_the_l1_loss_of_patches_in_the_frame(tmp_path: Path) -> None:
    """Against whole frames, continued by hand: trained as it is played, border of the frame included."""
    fit = started(tmp_path, max_patches=10**6, method="single")
    fit.make_stores()
    store, spec = PatchStore(fit.work / "expert-0"), fit.plan.spec("expert-0")
    assert fit.plan.trims("expert-0")
    recipe = Recipe(steps=1, batch_size=4, trim=True)
    trained = overfit(fit.new_network(spec, 0), store, recipe, tmp_path / "net.pt")
    net, pairs, r, s = fit.new_network(spec, 0), list(fit.pairs()), spec.receptive_radius, spec.scale
    starts, height, width = fit.geometry.windows()
    losses = []
    for number in recipe.draw(0, len(store)).tolist():
        pair, (top, left) = pairs[number // len(starts)], starts[number % len(starts)].tolist()
        frame = torch.from_numpy(np.pad(pair.lr.numpy(), [(0, 0), (0, 0), (r, r), (r, r)], mode="edge"))
        y, x = s * (top + r), s * (left + r)  # the same network, padding far outside
        output = net(frame)[..., y : y + s * height, x : x + s * width]
        truth = pair.hr[..., s * top : s * (top + height), s * left : s * (left + width)]
        losses.append((output - truth).abs().mean())
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.rate(0), betas=(0.9, 0.95))
    torch.stack(losses).mean().backward()
    optimizer.step()
    for ours, theirs in zip(trained.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-3)


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
            "hf_efficient.video.encode.overfit.average_gradients",
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
    source = make_clip(tmp_path / "a.mp4", moving_frames(10, 96, 80))
    settings: dict[str, Any] = {**QUICK, "num_features": 8, "steps": 300, "batch_size": 8, **LOSSLESS}
    settings |= {"method": method, **settings_of(VIDEO, method, num_chunks=2)}
    player = Player(fit_video(source, tmp_path / "bundle", **settings))
    truth = [frame.rgb.astype(float) for frame in read_frames(source)]
    small = [to_tensor(frame.rgb) for frame in read_frames(player.bundle.low_resolution)]
    bicubic = np.mean([(to_rgb8(upsample_bicubic(x, 2)) - y) ** 2 for x, y in zip(small, truth, strict=True)])
    ours = np.mean([(x.rgb - y) ** 2 for x, y in zip(player.frames(), truth, strict=True)])
    assert 10 * np.log10(bicubic / ours) > 0.1


def test_early_gradients_are_soon_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short training on a real clip, against Adam with its published memory: nearer by more than 0.2 dB."""
    settings = FitSettings(method="jstdo", num_features=8, lr_quality=0)
    fit = Fit(clip("carphone_pristine.mp4"), tmp_path / "bundle", settings, False, torch.device("cpu"))
    fit.prepare(overwrite=False)
    fit.make_low_resolution()
    fit.score()
    fit.make_stores()
    store = PatchStore(fit.work / "expert-0")

    def trained_error(name: str, **changes: Any) -> float:
        net, recipe = fit.new_network(fit.plan.spec("expert-0"), 0), Recipe(steps=250, batch_size=4, **changes)
        return store_error(overfit(net, store, recipe, tmp_path / f"{name}.pt"), store, trim=False)

    assert 10 * np.log10(trained_error("published", betas=(0.9, 0.999)) / trained_error("ours")) > 0.2


TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29533"]
# --multi_gpu is accelerate's name for several processes, with or without GPUs; with --cpu it starts a single one
ACCELERATE = [
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29534",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        (TORCHRUN, {"method": "jstdo"}),
        (ACCELERATE, {"method": "jstdo"}),
        *((TORCHRUN, {"method": "stdo", "num_chunks": 2, "warm_start": start}) for start in STARTS),
    ],
)
def test_two_processes_make_the_bundle_of_one(tmp_path: Path, launcher: list[str], settings: dict[str, Any]) -> None:
    """Gradients averaged or networks shared out, against one process."""
    source, chosen = source_clip(tmp_path), {**QUICK, **settings, "weight_dtype": "float32"}
    script = tmp_path / "fit.py"
    script.write_text(
        "import os\nfrom hf_efficient import fit_video\nassert os.environ['WORLD_SIZE'] == '2'\n"
        f"fit_video({str(source)!r}, {str(tmp_path / 'two')!r}, **{chosen!r})\n"
    )
    command: list[Any] = [sys.executable, "-m", *launcher, script]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    one, two = (load_file(b.model / "model.safetensors") for b in
                (fit_video(source, tmp_path / "one", **chosen), Bundle.open(tmp_path / "two")))  # fmt: skip
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-3, rtol=0, msg=name)
