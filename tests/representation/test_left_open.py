"""What settings stand for where nothing is said, and in files of before."""

from typing import Any

import pytest

from hf_efficient import TokenPrunerConfig


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
