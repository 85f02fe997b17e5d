"""The rule of copies, against a plain walk over the raster and against its own decoder."""

import pytest
import torch

from hf_efficient.representation.maths.copies import LEFT, NOTHING, UP, Copies, copied_from

SHAPES = [(1, 1), (1, 9), (9, 1), (6, 7), (12, 5)]


def raster(seed: int, shape: tuple[int, int], kinds: int = 3, width: int = 4) -> torch.Tensor:
    """(H, W, width): few kinds of cells in blocks, so that many are copies."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(kinds, (shape[0] // 2 + 1, shape[1] // 3 + 1), generator=generator)
    kind = blocks.repeat_interleave(2, 0).repeat_interleave(3, 1)[: shape[0], : shape[1]]
    return torch.rand(kinds, width, generator=generator)[kind]


def predictor(known: dict[tuple[int, int], torch.Tensor], row: int, column: int, tolerance: float) -> int:
    """Which neighbour predicts a cell, from the cells before it alone."""
    if row == 0:
        return LEFT
    if column == 0:
        return UP
    a, b, c = known[row, column - 1], known[row - 1, column], known[row - 1, column - 1]
    edge = bool((a - c).abs().max() <= tolerance) and bool((b - c).abs().max() > tolerance)
    return UP if edge else LEFT


def before(row: int, column: int, way: int) -> tuple[int, int]:
    return (row - 1, column) if way == UP else (row, column - 1)


def walked(cells: torch.Tensor, tolerance: float) -> torch.Tensor:
    """The rule, one cell after the other."""
    known, ways = {}, torch.zeros(cells.shape[:2], dtype=torch.long)
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            known[row, column] = cells[row, column]
            if row == column == 0:
                continue
            way = predictor(known, row, column, tolerance)
            if (cells[row, column] - known[before(row, column, way)]).abs().max() <= tolerance:
                known[row, column], ways[row, column] = known[before(row, column, way)], way
    return ways


@pytest.mark.parametrize("shape", SHAPES)
def test_copies_are_those_of_a_plain_walk(shape: tuple[int, int]) -> None:
    for seed in range(20):
        cells = raster(seed, shape)
        expected = walked(cells, 0.0)
        assert torch.equal(copied_from(cells), expected)
        assert torch.equal(copied_from(cells, torch.zeros(4)), expected)
        noisy = cells + 0.2 * torch.rand(cells.shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(copied_from(noisy, torch.full((4,), 0.1)), walked(noisy, 0.1))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kept_cells_and_their_places_are_the_whole_picture(shape: tuple[int, int]) -> None:
    for seed in range(20):
        cells = raster(seed, shape)
        copies = Copies.of(copied_from(cells).flatten(), shape[1])
        sent = {divmod(int(place), shape[1]): cells.flatten(0, 1)[place] for place in copies.cells}
        known: dict[tuple[int, int], torch.Tensor] = {}
        for row in range(shape[0]):
            for column in range(shape[1]):
                own = sent.get((row, column))
                known[row, column] = (
                    known[before(row, column, predictor(known, row, column, 0.0))] if own is None else own
                )
        assert torch.equal(torch.stack(list(known.values())), cells.flatten(0, 1))
        assert torch.equal(cells.flatten(0, 1)[copies.cells][copies.stand_in], cells.flatten(0, 1))


def test_differences_do_not_add_up_along_a_ramp() -> None:
    ramp = torch.linspace(0, 1, 101)[None, :, None]
    copies = Copies.of(copied_from(ramp, torch.tensor([0.0501])).flatten(), 101)
    assert copies.cells.tolist() == [0, *range(6, 101, 6)]  # 0.06 is the first that is too far from 0
    assert (ramp.flatten() - ramp.flatten()[copies.cells][copies.stand_in]).abs().max() <= 0.0501


def test_a_picture_of_one_colour_is_one_cell_and_noise_is_all_cells() -> None:
    flat = Copies.of(copied_from(torch.ones(40, 70, 3)).flatten(), 70)
    assert flat.cells.tolist() == [0]
    assert flat.stand_in.tolist() == [0] * 2800  # a chain of copies as long as the raster allows
    noise = torch.rand(9, 9, 3, generator=torch.Generator().manual_seed(0))
    assert (copied_from(noise) == NOTHING).all()
