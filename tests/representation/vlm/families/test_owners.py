"""Owners of tokens in connectors whose table is known, and the layout of units by where their features come from."""

import pytest
import torch
from torch import nn

from hf_efficient.representation.vlm.families.patch_map import PatchMap, Unclear, owners, unit_of


class Mixing(nn.Module):
    """A connector of 8 tokens: each of its features is made of the tokens that a table (N, 8) names."""

    def __init__(self, table):
        super().__init__()
        self.table, self.weight = torch.tensor(table), torch.randn(8, 4, 4)

    def forward(self, tokens):
        rows = [torch.einsum("nd,nde->e", tokens[0, row], self.weight[row]) for row in self.table.bool()]
        return torch.stack(rows).tanh()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[0, 0, 1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1]], [2, 1, 0, -1, -1, 0, -1, 2]),
        ([[0, 0, 0, 0, 0, 0, 0, 1]], [-1] * 7 + [0]),
        ([[0] * 8, [1] * 8, [0] * 8], [1] * 8),
        (torch.eye(8)[[3, 1, 4, 0, 5, 2, 7, 6]].tolist(), [3, 1, 5, 0, 2, 4, 7, 6]),
    ],
)
def test_owners_of_tokens_are_those_of_the_table(table, expected):
    tokens = torch.randn(1, 8, 4, requires_grad=True)
    assert owners(Mixing(table)(tokens), [tokens]).tolist() == expected


@pytest.mark.parametrize("table", [[[1] * 8, [1] * 8], [[1, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]])
def test_tokens_that_make_several_features_are_refused(table):
    tokens = torch.randn(1, 8, 4, requires_grad=True)
    with pytest.raises(Unclear, match="makes several"):
        owners(Mixing(table)(tokens), [tokens])


@pytest.mark.parametrize(
    ("images", "row", "newline", "groups"),
    [
        ([0, 0, 0, 0], None, None, None),
        ([3, 3, 4, 4], None, None, [0, 0, 1, 1]),
        ([0, 0, -1, 0, 0, -1], [0, 0, 0, 1, 1, 1], [2, 5], None),
        ([0, 0, 0, 0, 1, 2, -1, 1, 2, -1], [-1] * 4 + [0, 0, 0, 1, 1, 1], [6, 9], [0, 0, 0, 0, 1, 2, 0, 1, 2, 0]),
        ([0, 0, -1, 0, 0, -1, 1, 1, 1], [0, 0, 0, 1, 1, 1, -1, -1, -1], [2, 5], [0] * 6 + [1] * 3),  # overview last
        ([0, 0, -1, -1, 0, 0, -1], [0, 0, 0, 1, 1, 1, 1], [2, 6], None),  # what ends no row is as others are
        ([-1, 0, -1], [0, 0, 0], [2], None),
    ],
)
def test_units_are_laid_out_by_where_their_features_come_from(images, row, newline, groups):
    unit = unit_of(torch.tensor(images), one_run=True)
    assert (None if unit.row is None else unit.row.tolist()) == row
    assert (None if unit.newline is None else unit.newline.nonzero().flatten().tolist()) == newline
    assert (None if unit.groups is None else unit.groups.tolist()) == groups


def test_attention_of_another_number_of_tokens_is_refused():
    with pytest.raises(Unclear, match="attention is of 5 tokens"):
        PatchMap(torch.tensor([0, -1, 1]), torch.zeros(3, dtype=torch.long), 2).sums(torch.ones(1, 5))
