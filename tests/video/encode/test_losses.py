"""What a delta is trained for: the losses by other ways, and fits by each of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_efficient.video.encode.candidates import best
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.losses import LOSSES, loss_of_bicubic, luma_l1, structure
from hf_efficient.video.measure.evaluation import LUMA_WEIGHTS, ssim
from hf_efficient.video.networks.backbones.luma import bicubic
from hf_efficient.video.patches import to_tensor
from hf_efficient.video.settings import LOSSES as NAMES
from hf_efficient.video.settings import FitSettings
from tests.video.bundles import QUICK, source_clip

SETTINGS = {**QUICK, "method": "delta", "num_features": 8, "num_blocks": 2, "lr_quality": 40, "learning_rate": 0.02}


def test_structure_is_the_measure_and_the_absolute_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 31, 3)).astype(np.uint8)
    y = np.clip(x + rng.normal(0, 20, x.shape), 0, 255).astype(np.uint8)
    a, b = to_tensor(x), to_tensor(y)
    absolute = np.abs((x.astype(np.float64) - y) @ LUMA_WEIGHTS / 255).mean()
    assert float(luma_l1(a, b)) == pytest.approx(absolute, rel=1e-4)
    assert float(structure(a, b)) == pytest.approx(0.84 * (1 - ssim(x, y)) + 0.16 * absolute, rel=1e-3)
    assert float(structure(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(structure(a[..., :7], a[..., :7])) == pytest.approx(0, abs=1e-6)  # narrower than the window


def test_the_loss_of_bicubic_is_that_of_its_patches() -> None:
    torch.manual_seed(0)
    lr, hr = torch.rand(3, 3, 12, 12), torch.rand(3, 3, 16, 16)

    class Three:
        def __len__(self) -> int:
            return 3

        def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            return lr[indices], hr[indices]

    enlarged = bicubic(lr, 2, trim=True)  # two pixels a side trimmed: as large as the true ones
    assert loss_of_bicubic(luma_l1, Three(), 2, True) == pytest.approx(float(luma_l1(enlarged, hr)), rel=1e-5)


def test_every_loss_is_a_setting() -> None:
    assert tuple(LOSSES) == NAMES
    with pytest.raises(ValueError, match="loss='l1': networks from scratch are trained for the absolute error"):
        FitSettings(method="jstdo", loss="l1")
    with pytest.raises(ValueError, match="loss='vmaf'"):
        FitSettings(loss="vmaf")


def test_a_fit_is_trained_for_its_loss_and_chosen_by_it(tmp_path: Path) -> None:
    source, deltas = source_clip(tmp_path), set()
    for loss in NAMES:
        bundle = fit_video(source, tmp_path / loss, **{**SETTINGS, "loss": loss})
        record = bundle.manifest["candidates"]
        deltas.add(tuple((row["name"], row["bytes"], row["psnr_luma"]) for row in record["rows"][-2:]))
        assert bundle.manifest["fit"]["loss"] == loss
        if loss == "mse":
            rows = [{**row, "error": 10 ** (-row["psnr_luma"] / 10)} for row in record["rows"]]
            assert record["taken"] == rows[best(rows, bundle.low_resolution.stat().st_size)]["name"]
    assert len(deltas) == len(NAMES)
