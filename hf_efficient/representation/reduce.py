"""From N visual tokens to K: checks, importance, selection, report. Usable alone on any (B, N, D) features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import TokenPrunerConfig
from .importance import distinctiveness, norms, relevance, shares
from .selection import GENERATORS, SELECTORS, id_pruner
from .selection.itg import cluster_weights
from .selection.kernel import TokenKernel
from .selection.mixture import Mixture, mass, nearest


@dataclass
class SelectionReport:
    """What a reduction kept, per unit and without labels.

    Args:
        importance_retained: (B,) share of the unit's importance that the kept tokens hold, in [0, 1].
        coverage: (B,) importance-weighted mean similarity of every token to its nearest kept one, in [0, 1].
        num_tokens: N.
        kept: K.
        reconstruction_error: (B,) importance-weighted squared distance of every token to the one that stands for it,
            relative to the variance; None where no token is assigned. Of generated tokens the two meters above tell
            what their anchors hold.
    """

    importance_retained: Tensor
    coverage: Tensor
    num_tokens: int
    kept: int
    reconstruction_error: Tensor | None = None


@dataclass
class ReducedTokens:
    """K tokens in place of N.

    Args:
        tokens: (B, K, D) in the dtype of the input; gradients flow to the tokens they are made of.
        indices: (B, K) long, rising positions of the kept tokens, or of the anchors of generated ones.
        assignment: (B, N) long or None: which of the K tokens stands for each of the N. For methods that select, only
            with `config.size_aware`: the nearest kept token.
        mass: (B, K) float32 or None: how many tokens each of the K stands for.
        report: see `SelectionReport`.
        mixture: how the tokens were made, None where they were selected. Makes tokens of other levels of features.
    """

    tokens: Tensor
    indices: Tensor
    assignment: Tensor | None
    mass: Tensor | None
    report: SelectionReport
    mixture: Mixture | None = None

    def unpool(self) -> Tensor:
        """(B, N, D): for every token the one that stands for it, as dense tasks need.

        Raises:
            ValueError: there is no assignment.
        """
        if self.assignment is None:
            raise ValueError("These tokens were selected without an assignment; set size_aware=True to get one.")
        return self.tokens.gather(1, self.assignment.unsqueeze(-1).expand(-1, -1, self.tokens.shape[-1]))


def reduce_tokens(
    features: Tensor,
    config: TokenPrunerConfig,
    importance: Tensor | None = None,
    query: Tensor | None = None,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> ReducedTokens:
    """Reduce every unit of a batch to `config.tokens_to_keep(N)` tokens.

    The choice is made in float32 whatever the dtype, without gradient, and independently for every row.

    Args:
        features: (B, N, D), any float dtype.
        config: method, budget and their settings.
        importance: (B, N) >= 0, or None to compute what `config.importance` says.
        query: (B, T, D) question tokens in the space of the features, needed if `config.question_weight` > 0.
        groups: (N,) or (B, N) long or None: tile or frame of every token, for `config.min_group_share`.
        valid: (B, N) bool or None: tokens that may be kept (False: padding, line breaks).

    Returns:
        The kept or generated tokens in order of position, their positions, and the report.

    Raises:
        ValueError: shapes do not fit, values are not finite, importance is negative or missing, or fewer valid tokens
            than the budget.
    """
    choice = _choose(features, config, importance, query, groups, valid, in_order=False)
    k, n, width = choice.order.shape[1], *features.shape[1:]
    if choice.mixture is not None:
        mixture, indices, assignment = choice.mixture, choice.mixture.anchors, choice.mixture.assignment
        tokens = mixture.of(features)
    else:
        mixture, indices, assignment = None, choice.order.sort(dim=1).values, None
        tokens = features if k == n else features.gather(1, indices.unsqueeze(-1).expand(-1, -1, width))
        if config.size_aware or config.method in GENERATORS:  # a generator gets here where there is nothing to merge
            assignment = nearest_kept(features, indices)
    report = _report(choice, config, valid)
    if assignment is None:
        return ReducedTokens(tokens, indices, None, None, report)
    report.reconstruction_error = reconstruction_error(features, tokens, assignment, choice.importance, valid)
    return ReducedTokens(tokens, indices, assignment, mass(assignment, k, valid), report, mixture)


@torch.no_grad()
def nearest_kept(features: Tensor, indices: Tensor) -> Tensor:
    """The kept token nearest to each token of features (B, N, D): (B, N) long in [0, K), of indices (B, K) long."""
    own = torch.arange(indices.shape[1], device=features.device).expand_as(indices)
    if indices.shape[1] == features.shape[1]:
        return own
    with torch.autocast(features.device.type, enabled=False):
        x = features.float()
        kept = x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return nearest(x, kept).scatter(1, indices, own)


@torch.no_grad()
def reconstruction_error(
    features: Tensor, tokens: Tensor, assignment: Tensor, importance: Tensor, valid: Tensor | None
) -> Tensor:
    """sum_i w_i |x_i - z_a(i)|² / sum_i w_i |x_i - mean|² with ITG's weights w: (B,) float32, 0 if all is kept."""
    x, weights = features.float(), cluster_weights(importance, valid)
    weights = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)
    stand_in = tokens.float().gather(1, assignment.unsqueeze(-1).expand_as(x))
    spread = (weights * (x - (weights * x).sum(1, keepdim=True)).square()).sum((1, 2))
    lost = (weights * (x - stand_in).square()).sum((1, 2))
    return lost / torch.where(spread > 0, spread, 1)


def select_order(
    features: Tensor,
    config: TokenPrunerConfig,
    importance: Tensor | None = None,
    query: Tensor | None = None,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The choice of `reduce_tokens` alone, (B, K) long in the order taken. Arguments and errors as there.

    Of methods that generate: the places of their tokens, rising.
    """
    return _choose(features, config, importance, query, groups, valid).order


class _Choice(NamedTuple):
    """Order taken (B, K), importance (B, N) float32, coverage (B,) where the method knows it, kernel of the tokens."""

    order: Tensor
    importance: Tensor
    coverage: Tensor | None
    kernel: TokenKernel
    mixture: Mixture | None = None


@torch.no_grad()
def _choose(
    features: Tensor,
    config: TokenPrunerConfig,
    importance: Tensor | None,
    query: Tensor | None,
    groups: Tensor | None,
    valid: Tensor | None,
    in_order: bool = True,
) -> _Choice:
    """Checks, importance, selection: in float32 and outside of autocast. `in_order`: also if all tokens are kept."""
    groups = _check_shapes(features, importance, query, groups, valid)
    k = config.tokens_to_keep(features.shape[1])
    with torch.autocast(features.device.type, enabled=False):
        x = features.float()
        _check_values(importance, groups, valid, k)
        kernel = TokenKernel(x, config.kernel, valid)
        _check_features(x, kernel)
        p = token_importance(x, config, importance, query, valid)
        if k == x.shape[1] and not in_order:
            return _Choice(torch.arange(k, device=x.device).expand(len(x), -1), p, torch.ones_like(p[:, 0]), kernel)
        if config.method == "id_pruner":
            order, covered = id_pruner.select_and_cover(kernel, p, k, config, groups=groups, valid=valid)
            known = covered.sum(1) / (1 - config.importance_weight) if config.importance_weight < 1 else None
            return _Choice(order, p, known, kernel)
        if config.method in GENERATORS:
            mixture = GENERATORS[config.method](x, p, k, config, groups=groups, valid=valid)
            return _Choice(mixture.anchors, p, None, kernel, mixture)
        return _Choice(SELECTORS[config.method](x, p, k, config, groups=groups, valid=valid), p, None, kernel)


def token_importance(
    x: Tensor, config: TokenPrunerConfig, importance: Tensor | None, query: Tensor | None, valid: Tensor | None
) -> Tensor:
    """(B, N) float32 >= 0 from the argument or from `config.importance`, mixed with question relevance."""
    if importance is not None:
        weights = importance.float()
    elif config.importance in ("auto", "distinct"):
        weights = distinctiveness(x, valid)
    elif config.importance == "norm":
        weights = norms(x)
    else:
        raise ValueError(
            f"importance={config.importance!r} comes from the vision model's attention: pass the `importance` argument "
            "(see hf_efficient.representation.importance), or set importance='distinct'."
        )
    if config.question_weight:
        if query is None:
            raise ValueError(
                f"question_weight={config.question_weight} needs the `query` argument (B, T, D); pass it, or set "
                "question_weight=0."
            )
        asked = shares(relevance(x, query, valid=valid), valid)
        weights = (1 - config.question_weight) * shares(weights, valid) + config.question_weight * asked
    return weights


def _check_shapes(
    features: Tensor, importance: Tensor | None, query: Tensor | None, groups: Tensor | None, valid: Tensor | None
) -> Tensor | None:
    """Raise on shapes and dtypes that do not fit; `groups` comes back as (B, N)."""
    if features.dim() != 3 or not features.is_floating_point() or 0 in features.shape:
        raise ValueError(
            f"features of shape {tuple(features.shape)} and dtype {features.dtype}; expected floats (B, N, D). "
            "Add the batch dimension with features[None] for one unit."
        )
    batch, n, width = features.shape
    if importance is not None and (importance.shape != (batch, n) or not importance.is_floating_point()):
        raise ValueError(
            f"importance of shape {tuple(importance.shape)} and dtype {importance.dtype}; expected floats {(batch, n)}."
        )
    if query is not None and (
        query.dim() != 3 or query.shape[0] != batch or query.shape[2] != width or not query.shape[1]
    ):
        raise ValueError(f"query of shape {tuple(query.shape)}; expected ({batch}, T, {width}) with T >= 1.")
    if valid is not None and (valid.shape != (batch, n) or valid.dtype != torch.bool):
        raise ValueError(f"valid of shape {tuple(valid.shape)} and dtype {valid.dtype}; expected bool {(batch, n)}.")
    if groups is None:
        return None
    if groups.shape not in ((n,), (batch, n)) or groups.dtype != torch.long:
        raise ValueError(
            f"groups of shape {tuple(groups.shape)} and dtype {groups.dtype}; expected long {(n,)} or {(batch, n)}."
        )
    return groups.expand(batch, n)


def _check_features(x: Tensor, kernel: TokenKernel) -> None:
    """Raise on features that are not finite; their kernel has looked at all of them already."""
    if not torch.isfinite(kernel.spread).all():
        raise ValueError(
            f"features hold NaN, infinite or huge values ({int((~torch.isfinite(x)).sum())} are not finite); expected "
            "magnitudes below 1e15. Check the vision model's output (overflow of a 16-bit dtype?)."
        )


def _check_values(importance: Tensor | None, groups: Tensor | None, valid: Tensor | None, k: int) -> None:
    """Raise on values that would make the choice meaningless."""
    if importance is not None and not ((importance >= 0) & torch.isfinite(importance)).all():
        raise ValueError("importance holds negative, NaN or infinite values; expected finite values >= 0.")
    if groups is not None and (groups < 0).any():
        raise ValueError("groups holds negative numbers; expected the index of a tile or frame for every token.")
    if valid is not None and (valid.sum(1) < k).any():
        raise ValueError(
            f"A unit has {int(valid.sum(1).min())} valid tokens, fewer than the {k} to keep; lower the budget for it."
        )


@torch.no_grad()
def _report(choice: _Choice, config: TokenPrunerConfig, valid: Tensor | None) -> SelectionReport:
    """The two normalised meters of the kept tokens."""
    with torch.autocast(choice.importance.device.type, enabled=False):
        p, coverage = shares(choice.importance, valid), choice.coverage
        if coverage is None:
            nearest = torch.zeros_like(p)
            for part in choice.order.split(512, dim=1):
                nearest = torch.maximum(nearest, choice.kernel.rows(part).amax(1))
            coverage = (id_pruner.coverage_weights(p, config.coverage_mix, valid) * nearest).sum(1)
        retained = p.gather(1, choice.order).sum(1)
    return SelectionReport(retained.clamp(0, 1), coverage.clamp(0, 1), p.shape[1], choice.order.shape[1])
