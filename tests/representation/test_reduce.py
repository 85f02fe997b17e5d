"""reduce_tokens: what comes back, that it is the same whatever surrounds it, and what is refused before any work."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_efficient import TokenPrunerConfig, reduce_tokens
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.reduce import select_order
from tests.representation.methods import SELECTORS as METHODS
from tests.representation.objective import Objective


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, 60, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def importance() -> Tensor:
    return torch.rand(3, 60, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_kept_tokens_are_the_input_at_rising_indices(method: str, features: Tensor, importance: Tensor) -> None:
    reduced = reduce_tokens(features, TokenPrunerConfig(method=method, budget=9), importance)
    assert reduced.tokens.shape == (3, 9, 12)
    assert (reduced.indices.diff(dim=1) > 0).all()
    for row in range(3):
        assert torch.equal(reduced.tokens[row], features[row, reduced.indices[row]])
    assert (reduced.report.num_tokens, reduced.report.kept) == (60, 9)
    order = select_order(features, TokenPrunerConfig(method=method, budget=9), importance)
    assert torch.equal(order.sort(dim=1).values, reduced.indices)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_report_is_its_definition(method: str, kernel: str, features: Tensor, importance: Tensor) -> None:
    config = TokenPrunerConfig(method=method, budget=9)
    if method == "id_pruner":  # others are held to the default
        config = replace(config, kernel=kernel, coverage_mix=0.7)
    reduced = reduce_tokens(features, config, importance)
    for row in range(3):
        kept = reduced.indices[row].tolist()
        mix = 0.5 if config.coverage_mix is None else config.coverage_mix
        f = Objective(features[row], importance[row], 9, weight=0.0, mix=mix, kind=config.kernel)
        assert float(reduced.report.coverage[row]) == pytest.approx(f(kept), abs=1e-5)
        share = float(importance[row, kept].sum() / importance[row].sum())
        assert float(reduced.report.importance_retained[row]) == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_report_of_everything_kept_is_one(weight: float, features: Tensor) -> None:
    for x in (features, torch.ones_like(features)):
        report = reduce_tokens(x, TokenPrunerConfig(budget=1.0, importance_weight=weight)).report
        torch.testing.assert_close(report.coverage, torch.ones(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(report.importance_retained, torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [60, 61, 5000, 1.0])
def test_keeping_all_changes_no_bit(method: str, budget: int | float, features: Tensor) -> None:
    reduced = reduce_tokens(features, TokenPrunerConfig(method=method, budget=budget))
    assert torch.equal(reduced.tokens, features)
    assert torch.equal(reduced.indices, torch.arange(60).expand(3, -1))


@pytest.mark.parametrize("method", METHODS)
def test_batch_equals_single_bit_for_bit(method: str, features: Tensor, importance: Tensor) -> None:
    asked = 0.3 if method in REPRESENTATION.readers("question_weight") else 0.0
    config = TokenPrunerConfig(method=method, budget=0.2, question_weight=asked)
    query = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(2))
    for weights in (importance, None):
        together = reduce_tokens(features, config, weights, query)
        for row in range(3):
            at = slice(row, row + 1)
            alone = reduce_tokens(features[at], config, None if weights is None else weights[at], query[at])
            assert torch.equal(alone.indices[0], together.indices[row])
            assert torch.equal(alone.tokens[0], together.tokens[row])
            assert torch.equal(alone.report.coverage[0], together.report.coverage[row])
            assert torch.equal(alone.report.importance_retained[0], together.report.importance_retained[row])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_choice_in_16_bit_is_that_of_the_same_values_in_32(method: str, dtype: torch.dtype, features: Tensor) -> None:
    config = TokenPrunerConfig(method=method, budget=9)
    short = features.to(dtype)
    reduced = reduce_tokens(short, config)
    assert reduced.tokens.dtype == dtype
    assert torch.equal(reduced.indices, reduce_tokens(short.float(), config).indices)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = reduce_tokens(features, config)
    assert torch.equal(inside.indices, reduce_tokens(features, config).indices)
    assert inside.tokens.dtype == torch.float32


def test_gradients_flow_to_kept_tokens_and_to_no_other(features: Tensor, importance: Tensor) -> None:
    features.requires_grad_()
    importance.requires_grad_()
    reduced = reduce_tokens(features, TokenPrunerConfig(budget=9), importance)
    reduced.tokens.sum().backward()
    assert features.grad is not None
    kept = torch.zeros(3, 60).scatter(1, reduced.indices, 1)
    assert torch.equal(features.grad, kept.unsqueeze(-1).expand(-1, -1, 12))
    assert importance.grad is None
    assert not reduced.report.coverage.requires_grad


def test_inputs_are_left_as_they_were(features: Tensor, importance: Tensor) -> None:
    x, p = features.clone(), importance.clone()
    for kernel in ("rbf", "cosine"):
        reduce_tokens(x, TokenPrunerConfig(kernel=kernel), p)
    assert torch.equal(x, features)
    assert torch.equal(p, importance)


def test_inference_mode_and_compile_change_nothing(features: Tensor) -> None:
    config = TokenPrunerConfig(budget=9)
    expected = reduce_tokens(features, config).tokens
    with torch.inference_mode():
        assert torch.equal(reduce_tokens(features, config).tokens, expected)
    compiled = torch.compile(lambda x: 2 * reduce_tokens(x, config).tokens, backend="eager")
    assert torch.equal(compiled(features), 2 * expected)


def test_groups_may_be_given_once_for_the_batch(features: Tensor) -> None:
    groups = torch.arange(60) // 20
    config = TokenPrunerConfig(budget=9, min_group_share=1.0, coverage_mix=0.0)
    reduced = reduce_tokens(features, config, groups=groups)
    assert torch.equal(reduced.indices, reduce_tokens(features, config, groups=groups.expand(3, -1)).indices)
    for row in reduced.indices:
        assert torch.bincount(groups[row]).tolist() == [3, 3, 3]


def test_question_weight_one_ranks_by_the_question(features: Tensor) -> None:
    query = features[:, 17:18]  # asks for exactly this token
    config = TokenPrunerConfig(budget=1, importance_weight=1.0, question_weight=1.0)
    assert reduce_tokens(features, config, query=query).indices.flatten().tolist() == [17, 17, 17]


def test_importance_sources(features: Tensor) -> None:
    def top(importance: str) -> TokenPrunerConfig:
        return TokenPrunerConfig(method="top_importance", budget=1, importance=importance)

    norm = reduce_tokens(features, top("norm")).indices
    assert torch.equal(norm[:, 0], features.norm(dim=-1).argmax(1))
    distinct = reduce_tokens(features, top("distinct")).indices
    assert torch.equal(distinct, reduce_tokens(features, top("auto")).indices)
    given = torch.zeros(3, 60)
    given[:, 5] = 1
    assert (reduce_tokens(features, top("cls"), given).indices == 5).all()


def broken(value: float, where: tuple[int, ...] = (1, 7)) -> Tensor:
    bad = torch.ones(3, 60)
    bad[where] = value
    return bad


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"features": torch.randn(60, 12)}, r"\(60, 12\).*features\[None\]"),
        ({"features": torch.ones(3, 60, 12, dtype=torch.long)}, "torch.int64"),
        ({"features": torch.randn(3, 0, 12)}, r"\(3, 0, 12\)"),
        ({"features": torch.full((3, 60, 12), float("nan"))}, "features hold NaN"),
        ({"features": torch.full((3, 60, 12), float("inf"))}, "features hold NaN, infinite or huge values"),
        ({"features": 1e20 * torch.randn(3, 60, 12)}, "0 are not finite"),
        ({"importance": torch.ones(3, 59)}, r"importance of shape \(3, 59\).*\(3, 60\)"),
        ({"importance": torch.ones(60)}, r"importance of shape \(60,\)"),
        ({"importance": torch.ones(3, 60, dtype=torch.long)}, "torch.int64"),
        ({"importance": broken(-1.0)}, "negative, NaN or infinite"),
        ({"importance": broken(float("nan"))}, "negative, NaN or infinite"),
        ({"importance": broken(float("inf"))}, "negative, NaN or infinite"),
        ({"query": torch.ones(3, 4, 11)}, r"query of shape \(3, 4, 11\); expected \(3, T, 12\)"),
        ({"query": torch.ones(3, 0, 12)}, "T >= 1"),
        ({"groups": torch.zeros(59, dtype=torch.long)}, r"groups of shape \(59,\)"),
        ({"groups": torch.zeros(60)}, "torch.float32"),
        ({"groups": torch.full((60,), -1)}, "groups holds negative"),
        ({"valid": torch.ones(3, 60)}, "valid of shape .* torch.float32"),
        ({"valid": broken(1.0) > 2}, "0 valid tokens, fewer than the 9 to keep"),
        ({"config": TokenPrunerConfig(importance="cls")}, "pass the `importance` argument"),
        ({"config": TokenPrunerConfig(importance="received")}, "importance='distinct'"),
        ({"config": TokenPrunerConfig(question_weight=0.5)}, "needs the `query` argument"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: dict[str, Any], said: str, features: Tensor) -> None:
    with pytest.raises(ValueError, match=said):
        reduce_tokens(**{"features": features, "config": TokenPrunerConfig(budget=9), **arguments})
