"""`min_group_share`: every tile or frame gets its share, and what is kept is the greedy choice under it."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_efficient import TokenPrunerConfig, reduce_tokens
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.reduce import select_order
from tests.representation.methods import SELECTORS
from tests.representation.selection.rules import RULES, greedy
from tests.representation.units import unit

READERS = REPRESENTATION.readers("min_group_share")
GREEDY = [method for method in READERS if method in SELECTORS]
K, N = 9, 24
GROUPS = torch.tensor([0] * 12 + [1] * 8 + [2] * 4)


def owed(p: Tensor, share: float, mix: float = 0.5) -> list[int]:
    """floor(rho k mass_g) of every group, by hand, and no more than it has."""
    pi = mix * p.double() / p.sum() + (1 - mix) / len(p)
    most = Counter(GROUPS.tolist())
    return [min(most[g], math.floor(share * K * float(pi[g == GROUPS].sum()) + 1e-4)) for g in range(3)]


def skewed(seed: int) -> tuple[Tensor, Tensor]:
    """Tokens (N, D) whose first group has what every method looks for: importance, length and variety."""
    x, p = unit(seed, n=N, width=16)
    x = torch.where((GROUPS == 0)[:, None], 3 * x, x[-1] + 0.05 * x)
    return x, torch.where(GROUPS == 0, p + 0.3, 0.1 * p)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", GREEDY)
def test_what_is_kept_is_the_greedy_choice_under_the_quotas(method: str, seed: int) -> None:
    x, p = skewed(seed)
    due = owed(p, 1.0)
    assert sum(due) > 0

    def allowed(taken: list[int], j: int) -> bool:
        """Whether k tokens that meet all quotas can still be reached after j, by counting."""
        have = Counter(int(GROUPS[i]) for i in [*taken, j])
        return sum(max(0, due[g] - have[g]) for g in range(3)) <= K - len(taken) - 1

    config = TokenPrunerConfig(method=method, budget=K, min_group_share=1.0, importance="norm")
    order = select_order(x[None], config, p[None], groups=GROUPS)[0].tolist()
    assert order == greedy(K, N, RULES[method](x, p), allowed)
    have = Counter(int(GROUPS[i]) for i in order)
    assert all(have[g] >= due[g] for g in range(3))


@pytest.mark.parametrize("method", READERS)
def test_the_share_acts_in_every_method_that_reads_it(method: str) -> None:
    """Without it the skewed unit gives another choice in some draw, or the test would prove nothing."""
    acts = False
    for seed in range(8):
        x, p = skewed(seed)
        plain = TokenPrunerConfig(method=method, budget=K, importance="norm")
        held = TokenPrunerConfig(method=method, budget=K, importance="norm", min_group_share=1.0, coverage_mix=0.0)
        before, after = (reduce_tokens(x[None], c, p[None], groups=GROUPS).indices[0] for c in (plain, held))
        if method != "itg":  # its initial centers are held to it, not its anchors: test_initial_centers.py
            have = torch.bincount(GROUPS[after], minlength=3).tolist()
            assert all(h >= d for h, d in zip(have, owed(p, 1.0, 0.0), strict=True))
        acts |= not torch.equal(before, after)
    assert acts


@pytest.mark.parametrize("method", GREEDY)
def test_units_of_a_batch_and_invalid_tokens_change_no_quota(method: str) -> None:
    xs, ps = zip(*(skewed(seed) for seed in range(3)), strict=True)
    x, p = torch.stack(xs), torch.stack(ps)
    config = TokenPrunerConfig(method=method, budget=6, min_group_share=0.9, importance="norm")
    valid = torch.ones(3, N, dtype=torch.bool)
    valid[:, ::5] = False
    together = select_order(x, config, p, groups=GROUPS, valid=valid)
    for u in range(3):
        at = valid[u].nonzero().squeeze(1)
        alone = select_order(x[u, at][None], config, p[u, at][None], groups=GROUPS[at])[0]
        assert torch.equal(together[u], at[alone])


@pytest.mark.parametrize("method", [name for name in REPRESENTATION.names if name not in READERS])
def test_methods_that_cannot_keep_a_share_refuse_it(method: str) -> None:
    with pytest.raises(
        ValueError, match=rf"min_group_share=0\.5 is not read by method='{method}', only by 'id_pruner'"
    ):
        TokenPrunerConfig(method=method, min_group_share=0.5)


CHANGED: dict[str, Any] = {
    "importance_weight": 0.5, "coverage_mix": 0.1, "kernel": "rbf", "question_weight": 0.9, "min_group_share": 0.9,
    "lloyd_steps": 0, "centroid_share": 0.1, "initial_centers": "coverage", "importance_power": 3.0,
    "coverage_power": 3.0, "exchange_passes": 1,
}  # fmt: skip


@pytest.mark.parametrize("setting", CHANGED)
@pytest.mark.parametrize("method", REPRESENTATION.names)
def test_a_setting_changes_the_tokens_or_is_refused(method: str, setting: str) -> None:
    """The table says what the code does: nothing is accepted that changes no token, in any of these draws."""
    needs: dict[str, dict[str, Any]] = {
        "importance_weight": {"initial_centers": "coverage"}, "kernel": {"initial_centers": "coverage"},
        "coverage_power": {"initial_centers": "coverage"}, "exchange_passes": {"initial_centers": "coverage"},
        "coverage_mix": {"initial_centers": "coverage"} if method == "itg" else {"min_group_share": 1.0},
    }  # fmt: skip
    given = {k: v for k, v in needs.get(setting, {}).items() if method in REPRESENTATION.readers(k)}
    base = {"method": method, "budget": K, "importance": "norm", **given}
    if method not in REPRESENTATION.readers(setting):
        with pytest.raises(ValueError, match=", ".join(f"'{name}'" for name in REPRESENTATION.readers(setting))):
            TokenPrunerConfig(**base, **{setting: CHANGED[setting]})
        return
    changed = TokenPrunerConfig(**base, **{setting: CHANGED[setting]})
    different = False
    for seed in range(8):
        x, p = skewed(seed) if seed % 2 else unit(seed, n=N, width=16)
        query = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(seed))
        before, after = (
            reduce_tokens(x[None], config, p[None], query, GROUPS) for config in (TokenPrunerConfig(**base), changed)
        )
        different |= not torch.equal(before.tokens, after.tokens)
    assert different
