"""SparseWeight: the tensor it stands for, its gradients, and what moving does."""

import pytest
import torch
import torch.nn.functional as F

from hf_efficient.sparsity.sparse_weight import SparseWeight, check_indices
from hf_efficient.sparsity.storage import mask_encoding


def weight_of(shape: tuple[int, ...], indices: list[int], values: list[float]) -> SparseWeight:
    weight = SparseWeight(shape, len(indices))
    weight.select(torch.tensor(indices), torch.tensor(values))
    return weight


def test_dense_is_zero_but_for_the_active() -> None:
    weight = weight_of((2, 3), [5, 0], [2.0, -1.0])
    assert weight.dense().tolist() == [[-1, 0, 0], [0, 0, 2]]
    assert weight.dense(torch.ones(2, 3)).tolist() == [[0, 1, 1], [1, 1, 3]]
    assert weight.mask().tolist() == [True, False, False, False, False, True]


def test_gradient_equals_that_of_a_masked_dense_weight() -> None:
    torch.manual_seed(0)
    weight = SparseWeight((4, 6), 9)
    weight.select(torch.randperm(24)[:9], torch.randn(9))
    x = torch.randn(5, 6)
    dense = weight.dense().detach().requires_grad_()
    F.linear(x, dense).square().sum().backward()
    weight.collecting = True
    F.linear(x, weight.dense()).square().sum().backward()
    assert torch.equal(weight.values.grad, dense.grad.flatten()[weight.long_indices])
    assert torch.equal(weight.gradient, dense.grad.flatten())
    F.linear(x, weight.dense()).square().sum().backward()  # a second micro-batch adds up
    assert torch.equal(weight.gradient, 2 * dense.grad.flatten())
    weight.values.grad = None  # that step was given up: the next starts anew
    F.linear(x, weight.dense()).square().sum().backward()
    assert torch.equal(weight.gradient, dense.grad.flatten())


def test_gradient_flows_through_the_base_of_a_delta() -> None:
    first, second = weight_of((2, 2), [0], [1.0]), weight_of((2, 2), [3], [1.0])
    second.dense(first.dense(torch.ones(2, 2))).square().sum().backward()
    assert first.values.grad.tolist() == [4.0]
    assert second.values.grad.tolist() == [4.0]


def test_probing_shows_the_base_and_trains_nothing() -> None:
    weight = weight_of((2, 2), [1], [7.0])
    weight.probing = weight.collecting = True
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    whole = weight.dense(base)
    assert torch.equal(whole, base)
    whole.square().sum().backward()
    assert weight.values.grad.tolist() == [0.0]
    assert weight.gradient.tolist() == [2, 4, 6, 8]


def test_swap_keeps_every_other_slot() -> None:
    weight = weight_of((3, 3), [8, 2, 4], [1.0, 2.0, 3.0])
    weight.swap(torch.tensor([1]), torch.tensor([0]))
    assert weight.indices.tolist() == [8, 0, 4]
    assert weight.values.tolist() == [1, 0, 3]
    weight.swap(torch.tensor([0]), torch.tensor([7]), torch.tensor([9.0]))
    assert weight.indices.tolist() == [7, 0, 4]
    assert weight.values.tolist() == [9, 0, 3]


def test_resize_keeps_the_parameter_object() -> None:
    weight = weight_of((3, 3), [8, 2, 4], [1.0, 2.0, 3.0])
    parameter = weight.values
    weight.resize(torch.tensor([2, 0]), torch.tensor([5, 6, 7]))
    assert weight.values is parameter
    assert weight.indices.tolist() == [4, 8, 5, 6, 7]
    assert parameter.tolist() == [3, 1, 0, 0, 0]


def test_indices_stay_integers_when_the_model_changes_dtype() -> None:
    weight = SparseWeight((4, 4), 3).to(torch.bfloat16)
    assert (weight.values.dtype, weight.indices.dtype) == (torch.bfloat16, torch.int32)


@pytest.mark.parametrize("k", [0, 7, -1])
def test_impossible_k_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} .*expected 1 to 6"):
        SparseWeight((2, 3), k)


@pytest.mark.parametrize("indices", [[0, 9], [-1, 2], [2, 2]])
def test_damaged_indices_are_found(indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"layer: .*2 different numbers in \[0, 9\)"):
        check_indices(torch.tensor(indices), 9, "layer")


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_bitmap_equals_its_definition(n: int) -> None:
    mask = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.3
    packed = mask_encoding.pack(mask)
    assert packed.tolist() == [sum(int(mask[i]) << (i - b) for i in range(b, min(b + 8, n))) for b in range(0, n, 8)]
    assert torch.equal(mask_encoding.unpack(packed, n), mask)
    indices = torch.randperm(n, generator=torch.Generator().manual_seed(1))[: n // 2 + 1]
    mask_encoding.add(packed, indices)
    assert torch.equal(mask_encoding.unpack(packed, n), mask.index_fill(0, indices, True))


def test_bitmap_of_another_length_or_with_trailing_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="2 bytes"):
        mask_encoding.unpack(torch.zeros(3, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="after the last"):
        mask_encoding.unpack(torch.tensor([0, 2], dtype=torch.uint8), 9)


@pytest.mark.parametrize("density", [0.0, 0.0005, 0.01, 0.1, 1.0])
def test_gaps_equal_their_definition_and_come_back(density: float) -> None:
    mask = torch.rand(3000, generator=torch.Generator().manual_seed(4)) < density
    expected, inactive = [], 0
    for active in mask.tolist():
        if active:
            expected += [255] * (inactive // 255) + [inactive % 255]
        inactive = 0 if active else inactive + 1
    assert mask_encoding.to_gaps(mask).tolist() == expected
    assert torch.equal(mask_encoding.from_gaps(mask_encoding.to_gaps(mask), 3000), mask)


def test_gaps_that_lead_too_far_are_refused() -> None:
    with pytest.raises(ValueError, match="index 10 of 10"):
        mask_encoding.from_gaps(torch.tensor([0, 9], dtype=torch.uint8), 10)
    with pytest.raises(ValueError, match="bytes"):
        mask_encoding.from_gaps(torch.tensor([0, 9]), 10)
