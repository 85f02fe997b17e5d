"""Geometry and resampling against brute force and a reference written from the definition."""

import numpy as np
import pytest
import torch

from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.patches import (
    Geometry,
    crop,
    degrade,
    pad_to_grid,
    patch_errors,
    psnr,
    squared_errors,
    to_rgb8,
    to_tensor,
)
from tests.video.clips import moving_frames


def imresize(image: np.ndarray, scale: int) -> np.ndarray:
    """Antialiased bicubic reduction by its definition: kernel a = -0.5 stretched by s, mirrored borders, float64."""

    def along_rows(x: np.ndarray) -> np.ndarray:
        length = x.shape[0] // scale
        result = np.zeros((length, *x.shape[1:]))
        for i in range(length):
            center = (i + 0.5) * scale - 0.5
            taps = np.arange(int(np.floor(center - 2 * scale)), int(np.ceil(center + 2 * scale)) + 1)
            d = np.abs(taps - center) / scale
            near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
            mirrored = np.where(taps < 0, -taps - 1, np.where(taps >= len(x), 2 * len(x) - taps - 1, taps))
            result[i] = np.tensordot(weights / weights.sum(), x[mirrored], 1)
        return result

    small = along_rows(along_rows(image.astype(float)).swapaxes(0, 1)).swapaxes(0, 1)
    return np.floor(small.clip(0, 255) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_degrade_is_matlabs_imresize_but_for_the_border(scale: int) -> None:
    image = moving_frames(1, 48 * scale, 36 * scale)[0]
    geometry = Geometry.choose(48 * scale, 36 * scale, scale)
    ours = to_rgb8(degrade(to_tensor(image), geometry)).astype(int)
    difference = np.abs(ours - imresize(image, scale))[4:-4, 4:-4]
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize(("scale", "grid"), [(2, (10, 20)), (3, (6, 10)), (4, (5, 10))])
def test_published_grids_at_1080p(scale: int, grid: tuple[int, int]) -> None:
    geometry = Geometry.choose(1920, 1080, scale)
    assert (geometry.rows, geometry.columns) == grid
    assert (geometry.lr_width, geometry.lr_height) == (1920 // scale, 1080 // scale)
    starts, height, width = geometry.windows()
    assert len(starts) == grid[0] * grid[1] == {2: 200, 3: 60, 4: 50}[scale]
    cells = {(top, left) for top in range(0, 1080 // scale, height) for left in range(0, 1920 // scale, width)}
    assert {tuple(s) for s in starts.tolist()} == cells


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (63, 47), (175, 143), (176, 144), (1768, 994)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_windows_cover_every_pixel_of_any_size(size: tuple[int, int], scale: int) -> None:
    geometry = Geometry.choose(*size, scale)
    assert geometry.lr_width % 2 == geometry.lr_height % 2 == 0
    assert geometry.lr_width * scale >= size[0]
    starts, height, width = geometry.windows()
    covered = np.zeros((geometry.lr_height, geometry.lr_width), bool)
    for top, left in starts:
        assert 0 <= top <= geometry.lr_height - height
        assert 0 <= left <= geometry.lr_width - width
        covered[top : top + height, left : left + width] = True
    assert covered.all()


def test_odd_sizes_come_back_by_cropping() -> None:
    image = moving_frames(1, 37, 23)[0]
    padded = pad_to_grid(to_tensor(image), Geometry.choose(37, 23, 2))
    assert padded.shape == (1, 3, 24, 40)
    np.testing.assert_array_equal(to_rgb8(padded)[:23, :37], image)


def test_cut_is_slicing() -> None:
    frame, starts = torch.rand(3, 20, 30), np.array([[0, 0], [3, 7], [12, 20]])
    expected = torch.stack([frame[:, t : t + 8, l : l + 10] for t, l in starts])
    assert torch.equal(crop(frame, starts, 8, 10), expected)


def test_patch_error_by_hand() -> None:
    target = torch.full((2, 3, 20, 20), 100 / 255)
    output = target.clone()
    output[0, :, 10, 10] += 10 / 255  # one pixel of the 8 x 8 that border 6 leaves
    output[1, :, 0, 0] = 9.0  # in the border: not counted
    expected = torch.tensor([(10 / 255) ** 2 / 64, 0])
    torch.testing.assert_close(squared_errors(output, target, 6), expected)
    assert psnr(float(expected[0])) == pytest.approx(48.1308 - 20 + 10 * np.log10(64), abs=1e-3)
    assert psnr(0.0) == float("inf")
    tiny = squared_errors(torch.ones(1, 3, 5, 4), torch.zeros(1, 3, 5, 4), 6)  # smaller than the border: its center
    torch.testing.assert_close(tiny, torch.ones(1))


def test_hard_patches_score_worse() -> None:
    image = np.full((96, 128, 3), 90, np.uint8)
    image[:48, :64] = np.random.default_rng(0).integers(0, 256, (48, 64, 3))
    geometry = Geometry(128, 96, 2, 32, 24)
    hr = pad_to_grid(to_tensor(image), geometry)
    errors = patch_errors(upsample_bicubic(degrade(hr, geometry), 2), hr, geometry)
    assert errors[0] > 0.01
    assert errors[1:].max() < 0.002
