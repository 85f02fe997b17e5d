"""The packed map comes back whole, stays small, and a broken one is reported."""

import zlib
from itertools import islice

import numpy as np
import pytest

from hf_efficient.video.routing import RoutingError, pack, planes, unpack


@pytest.mark.parametrize("k", [2, 3, 4, 6, 7, 256])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 7), (13, 1, 9), (4, 10, 20), (30, 3, 3)])
def test_every_map_comes_back(size: tuple[int, int, int], k: int) -> None:
    labels = np.random.default_rng(k).integers(0, k, size)
    restored = list(unpack(pack(labels, k), *size[1:], k))
    np.testing.assert_array_equal(np.stack(restored), labels)


def test_one_expert_needs_no_map() -> None:
    assert pack(np.zeros((5, 2, 3), int), 1) == b""
    assert all((m == np.zeros((2, 3))).all() for m in islice(unpack(b"", 2, 3, 1), 5))


def test_size_with_the_published_statistics() -> None:
    """450 frames of 10 x 20 labels: 38 places always hard, 57 always easy, 2.1 % of labels flip between frames."""
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([0, 1, 2], [38, 57, 105]))
    labels = np.empty((450, 200), int)
    labels[0] = np.where(kind == 2, rng.integers(0, 2, 200), kind)
    for t in range(1, 450):
        flips = (rng.random(200) < 0.021 * 200 / 105) & (kind == 2)
        labels[t] = labels[t - 1] ^ flips
    packed = pack(labels.reshape(450, 10, 20), 2)
    assert 450 * 200 // 8 == 11_250  # raw
    assert len(packed) < 0.25 * 11_250  # measured on the published file: 2,145


def test_labels_need_as_many_planes_as_bits() -> None:
    assert [planes(k) for k in (1, 2, 3, 4, 5, 256)] == [0, 1, 2, 2, 3, 8]


def test_bad_labels_are_refused() -> None:
    with pytest.raises(RoutingError, match=r"from 0 to 3; expected 0 to 2"):
        pack(np.array([[[0, 3]]]), 3)
    with pytest.raises(RoutingError, match="num_experts=257"):
        pack(np.zeros((1, 1, 1), int), 257)


def test_broken_maps_are_reported() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (20, 5, 7))
    packed = pack(labels, 3)
    for broken in (packed[:-10], packed[: len(packed) // 2], b"", b"no zlib", packed[:20] + b"\xff" * 20 + packed[40:]):
        with pytest.raises(RoutingError):
            list(unpack(broken, 5, 7, 3))
    with pytest.raises(RoutingError, match="middle of a frame"):  # 19 frames of the grid's bytes and a half
        list(unpack(zlib.compress(b"\0" * 195), 5, 7, 3))
    with pytest.raises(RoutingError, match="names expert"):
        list(unpack(zlib.compress(b"\xff" * 10 * 20), 5, 7, 3))


def test_a_deflate_bomb_costs_one_frame_of_memory() -> None:
    import tracemalloc

    bomb = zlib.compress(b"\0" * 300_000_000, 9)
    tracemalloc.start()
    assert sum(1 for _ in islice(unpack(bomb, 5, 7, 2), 1000)) == 1000
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
