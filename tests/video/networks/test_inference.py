"""No seams: running patches with a halo is running whole frames and choosing."""

import numpy as np
import pytest
import torch

from hf_efficient.methods import BACKBONES
from hf_efficient.video.networks.backbones.wdsr import WDSR
from hf_efficient.video.networks.inference import best_tile, enlarge
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.tiles import join_boxes, merge_patches, split_into_tiles
from tests.video.bundles import on_whole_frames


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", BACKBONES.names)
def test_a_routed_frame_is_whole_frames_chosen_by_the_map(name: str, scale: int) -> None:
    torch.manual_seed(0)
    specs = [NetworkSpec(name, scale, 4, blocks) for blocks in (1, 2, 3)]
    experts = [spec.build().double() for spec in specs]
    frame = torch.rand(1, 3, 46, 62, dtype=torch.float64)
    patch = (10, 12)  # 5 x 6 patches, the last row and column cut short
    labels = np.random.default_rng(0).integers(0, 3, (5, 6))
    got = enlarge(experts, specs, frame, labels, patch, tile_pixels=300)
    whole = [on_whole_frames(net, frame) for net in experts]
    for i in range(5):
        for j in range(6):
            area = (..., slice(i * 10 * scale, (i + 1) * 10 * scale), slice(j * 12 * scale, (j + 1) * 12 * scale))
            torch.testing.assert_close(got[area], whole[labels[i, j]][area], atol=1e-9, rtol=0)


def test_one_network_is_the_network() -> None:
    spec = NetworkSpec("wdsr", 2, 4, 1)
    net = spec.build()
    frame = torch.rand(1, 3, 20, 30)
    expected = on_whole_frames(net, frame)
    torch.testing.assert_close(enlarge([net], [spec], frame, None, (5, 5)), expected)
    torch.testing.assert_close(enlarge([net, net], [spec, spec], frame, np.zeros((4, 6), int), (5, 5)), expected)


def test_a_frame_of_one_colour_stays_so_up_to_its_border() -> None:
    """Bicubic enlargement, with which training starts, of what has no detail; zeros around it would darken it."""
    spec = NetworkSpec("wdsr", 3, 4, 1)
    net = WDSR(3, 4, 1)
    net.start_from_bicubic()
    net.tail.weight.data.zero_()
    frame = torch.full((1, 3, 20, 30), 0.9)
    torch.testing.assert_close(enlarge([net], [spec], frame, None, (5, 5)), torch.full((1, 3, 60, 90), 0.9))


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
    for top, left, bottom, right in merge_patches(mask, (ph, pw), (height, width)):
        covered[top:bottom, left:right] += 1
    expected = np.kron(mask.astype(int), np.ones((ph, pw), int))[:height, :width]
    np.testing.assert_array_equal(covered, expected)


def pixels_of(boxes: list[tuple[int, int, int, int]], halo: int) -> float:
    """Mean height times mean width of what layers make of each box: a pixel less on each side from layer to layer."""
    context = np.arange(halo + 1)
    sides = ((bottom - top + 2 * context, right - left + 2 * context) for top, left, bottom, right in boxes)
    return sum(float(height.mean() * width.mean()) for height, width in sides)


@pytest.mark.parametrize("seed", range(6))
def test_joined_boxes_hold_each_area_once_and_save(seed: int) -> None:
    mask, patch, size, halo = np.random.default_rng(seed).random((6, 7)) < 0.5, (7, 9), (40, 61), 2 * seed
    areas = merge_patches(mask, patch, size)
    groups = join_boxes(areas, halo, 10**6)
    assert sorted(area for _, parts in groups for area in parts) == sorted(areas)
    for (top, left, bottom, right), parts in groups:
        assert (top, left) == (min(p[0] for p in parts), min(p[1] for p in parts))
        assert (bottom, right) == (max(p[2] for p in parts), max(p[3] for p in parts))
    boxes = [box for box, _ in groups]
    spent = pixels_of(boxes, halo)
    assert spent <= pixels_of(areas, halo)
    for a in range(len(boxes)):  # no other pair would save
        for b in range(a):
            union = (*map(min, boxes[a][:2], boxes[b][:2]), *map(max, boxes[a][2:], boxes[b][2:]))
            rest = [box for n, box in enumerate(boxes) if n not in (a, b)]
            assert pixels_of([*rest, union], halo) >= spent  # type: ignore[list-item]
    assert len(groups) < len(areas) or seed < 3
    assert join_boxes(areas, halo, 1) == [(area, [area]) for area in areas]


def test_a_full_mask_is_one_rectangle() -> None:
    assert merge_patches(np.ones((3, 4), bool), (5, 6), (14, 23)) == [(0, 0, 14, 23)]


@pytest.mark.parametrize("pixels", [1, 7, 40, 10_000])
def test_tiles_cover_an_area_once_and_stay_small(pixels: int) -> None:
    covered = np.zeros((20, 30), int)
    for top, left, bottom, right in split_into_tiles((2, 3, 17, 29), pixels):
        assert (bottom - top) * (right - left) <= pixels
        covered[top:bottom, left:right] += 1
    assert covered[2:17, 3:29].min() == covered.max() == 1
    assert covered.sum() == 15 * 26


def test_tiles_have_the_shortest_borders_there_are() -> None:
    """Against all grids of equal cells, tried out: a wide frame is not cut into thin bands."""
    height, width, pixels = 54, 96, 650

    def borders(rows: int, columns: int) -> int:
        return (columns - 1) * height + (rows - 1) * width

    grids = [(r, c) for r in range(1, 55) for c in range(1, 97) if -(-height // r) * -(-width // c) <= pixels]
    tiles = split_into_tiles((0, 0, height, width), pixels)
    got = len({t[0] for t in tiles}), len({t[1] for t in tiles})
    assert borders(*got) == min(borders(*grid) for grid in grids)
    assert min(got) > 1


def test_a_large_frame_in_tiles_is_the_network_on_it() -> None:
    torch.manual_seed(0)
    spec = NetworkSpec("wdsr", 2, 2, 1, expansion=1)
    net, frame = spec.build().double(), torch.rand(1, 3, 520, 530, dtype=torch.float64)
    assert best_tile(spec, frame.device) < 520 * 530
    expected = on_whole_frames(net, frame)
    torch.testing.assert_close(enlarge([net], [spec], frame, None, (54, 48)), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("features", "blocks", "pixels"),
    [(16, 2, 2**16), (4, 2, 2**18), (32, 2, 192**2), (32, 16, 2**18)],
    ids=["activations of 16 MiB", "narrow: no more than ever", "halo 6", "halo 34"],
)
def test_the_best_tile_weighs_memory_against_halos(features: int, blocks: int, pixels: int) -> None:
    spec = NetworkSpec("wdsr", 2, features, blocks)
    assert best_tile(spec, torch.device("cpu")) == pixels
    assert best_tile(spec, torch.device("meta")) == 2**18
