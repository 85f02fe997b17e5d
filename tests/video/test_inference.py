"""No seams: running patches with a halo is running whole frames and choosing."""

import numpy as np
import pytest
import torch

from hf_efficient.video.backbones import BACKBONES, NetworkSpec
from hf_efficient.video.inference import enlarge, merge, split


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_routed_frame_is_whole_frames_chosen_by_the_map(name: str, scale: int) -> None:
    torch.manual_seed(0)
    specs = [NetworkSpec(name, scale, 4, blocks) for blocks in (1, 2, 3)]
    experts = [spec.build().double() for spec in specs]
    frame = torch.rand(1, 3, 46, 62, dtype=torch.float64)
    patch = (10, 12)  # 5 x 6 patches, the last row and column cut short
    labels = np.random.default_rng(0).integers(0, 3, (5, 6))
    got = enlarge(experts, specs, frame, labels, patch, tile_pixels=300)
    with torch.no_grad():
        whole = [net(frame) for net in experts]
    for i in range(5):
        for j in range(6):
            area = (..., slice(i * 10 * scale, (i + 1) * 10 * scale), slice(j * 12 * scale, (j + 1) * 12 * scale))
            torch.testing.assert_close(got[area], whole[labels[i, j]][area], atol=1e-9, rtol=0)


def test_one_network_is_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = NetworkSpec("wdsr", 2, 4, 1)
    net = spec.build()
    frame = torch.rand(1, 3, 20, 30)
    with torch.no_grad():
        expected = net(frame)
    assert torch.equal(enlarge([net], [spec], frame, None, (5, 5)), expected)
    assert torch.equal(enlarge([net, net], [spec, spec], frame, np.zeros((4, 6), int), (5, 5)), expected)


def test_without_halo_there_would_be_seams() -> None:
    """The same patches run alone differ: the halo is what the other tests test."""
    spec = NetworkSpec("wdsr", 2, 4, 1)
    net = spec.build()
    frame = torch.rand(1, 3, 20, 30)
    with torch.no_grad():
        alone = net(frame[..., :10, :15])
        whole = enlarge([net], [spec], frame, None, (10, 15))
    assert (alone - whole[..., :20, :30]).abs().max() > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_merged_rectangles_cover_each_patch_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 8), rng.integers(1, 8))) < 0.6
    ph, pw = 7, 9
    height, width = mask.shape[0] * ph - rng.integers(0, ph), mask.shape[1] * pw - rng.integers(0, pw)
    covered = np.zeros((height, width), int)
    for top, left, bottom, right in merge(mask, (ph, pw), (height, width)):
        covered[top:bottom, left:right] += 1
    expected = np.kron(mask.astype(int), np.ones((ph, pw), int))[:height, :width]
    np.testing.assert_array_equal(covered, expected)


def test_a_full_mask_is_one_rectangle() -> None:
    assert merge(np.ones((3, 4), bool), (5, 6), (14, 23)) == [(0, 0, 14, 23)]


@pytest.mark.parametrize("pixels", [1, 7, 40, 10_000])
def test_tiles_cover_an_area_once_and_stay_small(pixels: int) -> None:
    covered = np.zeros((20, 30), int)
    for top, left, bottom, right in split((2, 3, 17, 29), pixels):
        assert (bottom - top) * (right - left) <= pixels
        covered[top:bottom, left:right] += 1
    assert covered[2:17, 3:29].min() == covered.max() == 1
    assert covered.sum() == 15 * 26
