"""Rows and columns of units of types without a file; test_patch_map.py compares those of types with one."""

import pytest
import torch

from hf_efficient.representation.vlm.families.encoder import Encoder
from hf_efficient.representation.vlm.families.raster import Raster
from hf_efficient.representation.vlm.proof import prove
from hf_efficient.representation.vlm.proof.raster import grid_of
from tests.zoo import stock


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mistral3", Raster("image_sizes", 28)),
        ("aya_vision", Raster("pixel_values", 28)),
        ("lfm2_vl", Raster("spatial_shapes", 2)),
        ("glm4v", Raster("image_grid_thw", 2)),
        ("deepseek_vl", None),  # the picture stands in margins
        ("gemma4", None),  # no argument tells the sides
    ],
)
def test_rasters_are_told_from_the_arguments_of_a_call(name, expected):
    encoder = prove(*stock(name)).encoder
    assert isinstance(encoder, Encoder)
    assert encoder.raster == expected


def cells(rows, columns, order=None):
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).view(-1, 2)
    return 0.3 * (places if order is None else places[order]).float() - 1


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (4, 3), (2, 9)])
def test_places_row_by_row_form_a_raster(rows, columns):
    noise = 0.01 * torch.randn(rows * columns, 2, generator=torch.Generator().manual_seed(0))
    assert grid_of(cells(rows, columns) + noise) == (rows, columns)


@pytest.mark.parametrize(
    "places",
    [
        cells(3, 4, torch.arange(12).flip(0)),
        cells(4, 4, torch.arange(16).view(4, 4).T.flatten()),
        cells(4, 4, torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).flatten()),  # square by square
        torch.zeros(6, 2),
        cells(3, 4)[:10],
    ],
)
def test_places_in_another_order_form_none(places):
    assert grid_of(places) is None


def test_sides_that_do_not_fit_the_number_of_tokens_are_no_raster():
    raster, sides = Raster("sizes", 14), torch.tensor([[28, 42], [28, 42], [30, 42]])
    assert raster.grids({"sizes": sides}, [6, 7, 9]) == [(2, 3), None, None]
    assert raster.grids({"sizes": sides}, [6]) == [None]
    assert raster.grids({}, [6, 6, 6]) == [None] * 3
