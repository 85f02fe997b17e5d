import pytest
import torch

from hf_efficient.active_mask import active_mask, set_active_mask


def test_a_mask_set_is_the_mask_read_and_follows_changes_in_place():
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    assert active_mask(weight) is None
    mask = torch.tensor([[True, False, True], [False, False, True]])
    set_active_mask(weight, mask)
    mask[0, 1] = True
    found = active_mask(weight)
    assert found is not None
    assert found.tolist() == [[True, True, True], [False, False, True]]
    set_active_mask(weight, None)
    assert active_mask(weight) is None


@pytest.mark.parametrize("mask", [torch.ones(3, 2, dtype=torch.bool), torch.ones(2, 3)])
def test_a_mask_of_another_shape_or_type_is_refused(mask):
    with pytest.raises(ValueError, match=r"bool .* \(2, 3\)"):
        set_active_mask(torch.nn.Parameter(torch.zeros(2, 3)), mask)
