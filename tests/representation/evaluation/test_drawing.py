"""Drawn images show kept patches untouched and all others under fog."""

import numpy as np
import pytest
from PIL import Image

from hf_efficient.representation.evaluation.drawing import draw_kept_tokens, enlarge

EDGE_WIDTH = 2


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_small_image_is_enlarged_by_whole_pixels() -> None:
    large = enlarge(noise(12, 20))
    assert min(large.size) >= 384
    assert large.size == (12 * 32, 20 * 32)
    assert np.array_equal(np.asarray(large)[::32, ::32], np.asarray(noise(12, 20)))
    assert enlarge(noise(500, 400)).size == (500, 400)


def test_kept_patches_are_clear_and_dropped_ones_pale() -> None:
    image = noise(96, 96)
    drawn = np.asarray(draw_kept_tokens(image, [0, 13, 143], (12, 12), scale=4)).astype(int)
    clear = np.asarray(enlarge(image, 4)).astype(int)
    for row in range(12):
        for column in range(12):
            inside = np.s_[row * 32 + 4 : row * 32 + 28, column * 32 + 4 : column * 32 + 28]
            if row * 12 + column in (0, 13, 143):
                assert np.array_equal(drawn[inside], clear[inside])
            else:
                assert drawn[inside].std() < 0.3 * clear[inside].std()


def test_all_tokens_kept_is_the_image_but_for_the_frame() -> None:
    image = noise(96, 96)
    drawn = np.asarray(draw_kept_tokens(image, range(144), (12, 12), scale=4))
    inside = np.s_[EDGE_WIDTH:-EDGE_WIDTH, EDGE_WIDTH:-EDGE_WIDTH]
    assert np.array_equal(drawn[inside], np.asarray(enlarge(image, 4))[inside])


def test_nothing_kept_is_all_fog() -> None:
    drawn = np.asarray(draw_kept_tokens(noise(96, 96), [], (12, 12))).astype(int)
    assert drawn.min() > 150


def test_the_grid_covers_a_image_of_any_shape() -> None:
    image = noise(101, 67).convert("L")
    drawn = np.asarray(draw_kept_tokens(image, range(35), (5, 7), scale=1))
    assert drawn.shape == (67, 101, 3)
    inside = np.s_[EDGE_WIDTH:-EDGE_WIDTH, EDGE_WIDTH:-EDGE_WIDTH]
    assert np.array_equal(drawn[inside], np.asarray(image.convert("RGB"))[inside])


def test_a_position_outside_of_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outside of the 12 x 12 grid"):
        draw_kept_tokens(noise(96, 96), [144], (12, 12))
    with pytest.raises(ValueError, match="no cell"):
        draw_kept_tokens(noise(96, 96), [], (0, 12))
    with pytest.raises(ValueError, match="scale=0"):
        enlarge(noise(96, 96), 0)
