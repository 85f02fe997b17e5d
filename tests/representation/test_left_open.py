"""What settings stand for where nothing is said, and in files of before."""

from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, reduce_tokens


def test_ours_take_distinctiveness_where_others_take_attention():
    for method in ("id_pruner", "itg"):
        assert TokenPrunerConfig(method=method).importance_source == "distinct"
        assert TokenPrunerConfig(method=method, importance="cls").importance_source == "cls"
    assert TokenPrunerConfig(method="scope").importance_source == "auto"


@pytest.mark.parametrize(
    ("settings", "k", "expected"),
    [
        ({}, 8, (0.5, 3.0)),
        ({"proportional_attention": True}, 8, (0.875, 3.0)),
        ({"proportional_attention": True}, 1, (0.5, 3.0)),
        ({"proportional_attention": True, "coverage_mix": 0.0}, 8, (0.0, 3.0)),
        ({"importance": "cls"}, 8, (0.5, 1.0)),
        ({"importance": "cls", "coverage_power": 2.0}, 8, (0.5, 2.0)),
        ({"method": "itg", "initial_centers": "coverage"}, 8, (0.875, 3.0)),
        ({"method": "itg", "proportional_attention": False}, 8, (0.5, 3.0)),
        ({"method": "itg"}, 8, (0.5, 1.0)),  # its quotas alone
        ({"method": "scope", "proportional_attention": True}, 8, (0.5, 1.0)),
    ],
)
def test_the_background_has_the_weight_of_one_token_where_sizes_count_and_half_of_all_where_not(settings, k, expected):
    assert TokenPrunerConfig(**settings).coverage_weights_of(k) == expected


def test_itg_starts_far_apart_where_sizes_count_and_from_coverage_where_not():
    assert TokenPrunerConfig(method="itg").centers_source == "farthest_first"
    assert TokenPrunerConfig(method="itg", proportional_attention=False).centers_source == "coverage"
    assert TokenPrunerConfig(method="itg", initial_centers="coverage").centers_source == "coverage"


def test_a_file_of_before_has_the_numbers_that_were_defaults_then() -> None:
    formerly: dict[str, Any] = {"coverage_mix": 0.5, "coverage_power": 1.0, "initial_centers": "farthest_first"}
    for method in ("scope", "random", "itg", "id_pruner"):
        assert TokenPrunerConfig.from_dict({"method": method, **formerly}).coverage_weights_of(8) == (0.5, 1.0)
    with pytest.raises(ValueError, match=r"coverage_mix=0.1 is read only with"):
        TokenPrunerConfig.from_dict({"method": "scope", "coverage_mix": 0.1})


def test_what_no_method_reads_goes_back_to_its_default_even_where_it_was_a_default_once() -> None:
    config = TokenPrunerConfig(coverage_mix=0.5, coverage_power=1.0)
    assert config.with_method("divprune") == TokenPrunerConfig("divprune")
    assert config.with_method("itg") == TokenPrunerConfig("itg")
    config = TokenPrunerConfig("itg", initial_centers="farthest_first")
    assert config.with_method("id_pruner") == TokenPrunerConfig("id_pruner")


@pytest.mark.parametrize("sizes", [None, True])
def test_no_tile_is_left_empty_where_a_share_is_guaranteed(sizes: bool | None) -> None:
    """Four tiles of 36 tokens, with things in the first alone: of 16 tokens half is shared by weights of 1/2 and p."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(1, 1, 16, generator=generator) + 0.3 * torch.randn(1, 144, 16, generator=generator)
    x[:, :20] += 3 * torch.randn(20, 16, generator=generator)
    tile = torch.arange(144) // 36
    settings: dict[str, Any] = {"budget": 16, "proportional_attention": sizes}
    free = reduce_tokens(x, TokenPrunerConfig(**settings)).indices[0]
    assert torch.bincount(tile[free], minlength=4).min() == 0
    kept = reduce_tokens(x, TokenPrunerConfig(min_group_share=0.6, **settings), groups=tile).indices[0]
    assert torch.bincount(tile[kept], minlength=4).min() >= 1  # floor(0.6 * 16 * 1/2 * 1/4), whatever p
