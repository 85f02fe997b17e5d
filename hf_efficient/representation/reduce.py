"""From N visual tokens to K: checks, importance, selection, report. Usable alone on any (B, N, D) features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.maths.importance import coverage_weights, distinctiveness, norms, relevance, shares
from hf_efficient.representation.maths.kernel import TokenKernel
from hf_efficient.representation.maths.kmeans import cluster_weights
from hf_efficient.representation.maths.mixture import Mixture, mass, nearest
from hf_efficient.representation.maths.temporal import Runs, static_runs

from .checks import check_features, check_groups, check_shapes, check_values
from .config import TokenPrunerConfig
from .selection import Covered, generates


@dataclass
class SelectionReport:
    """What a reduction kept, per unit and without labels.

    Args:
        importance_retained: (B,) share of the unit's importance that the kept tokens hold, in [0, 1].
        coverage: (B,) importance-weighted mean similarity of every token to its nearest kept one, in [0, 1].
        num_tokens: N.
        kept: K.
        measure_error: what `reconstruction_error` asks; None where no token is assigned.

    Of generated tokens the two meters tell what their anchors hold.
    """

    importance_retained: Tensor
    coverage: Tensor
    num_tokens: int
    kept: int
    measure_error: Callable[[], Tensor] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        kept, cover = float(self.importance_retained.mean()), float(self.coverage.mean())
        return (
            f"SelectionReport({self.kept} of {self.num_tokens} tokens, importance_retained={kept:.3f}, "
            f"coverage={cover:.3f})"
        )

    @cached_property
    def reconstruction_error(self) -> Tensor | None:
        """(B,) importance-weighted squared distance of every token to the one that stands for it, relative to variance.

        Computed when it is first asked for; None where no token is assigned.
        """
        return None if self.measure_error is None else self.measure_error()


@dataclass
class ReducedTokens:
    """K tokens in place of N.

    Args:
        tokens: (B, K, D) in the dtype of the input; gradients flow to the tokens they are made of.
        indices: (B, K) long, rising positions of the kept tokens, or of the anchors of generated ones.
        assignment: (B, N) long or None: which of the K tokens stands for each of the N. For methods that select, only
            with `config.proportional_attention`: the nearest kept token.
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

    def __repr__(self) -> str:
        kind = "selected" if self.mixture is None else "generated"
        return (
            f"ReducedTokens({kind}, {self.tokens.shape[1]} of {self.report.num_tokens}, "
            f"tokens={tuple(self.tokens.shape)} {str(self.tokens.dtype).removeprefix('torch.')}, {self.report!r})"
        )

    def unpool(self) -> Tensor:
        """(B, N, D): for every token the one that stands for it, as dense tasks need.

        Raises:
            ValueError: there is no assignment.
        """
        if self.assignment is None:
            raise ValueError(
                "These tokens were selected without an assignment; set proportional_attention=True to get one."
            )
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
        features: (B, N, D), any float dtype; tokens are compared by them, whatever `config.features` says of a model's.
        config: method, budget and their settings.
        importance: (B, N) >= 0, or None to compute what `config.importance` says.
        query: (B, T, D) question tokens in the space of the features, needed if `config.question_weight` > 0.
        groups: (N,) or (B, N) long: tile or frame of every token, needed if `config.min_group_share` or
            `config.merge_static` > 0.
        valid: (B, N) bool or None: tokens that may be kept (False: padding, line breaks).

    Returns:
        The kept or generated tokens in order of position, their positions, and the report.

    Raises:
        ValueError: shapes do not fit, values are not finite, importance is negative or missing, or fewer valid tokens
            than the budget.
    """
    config = _told(config, importance)
    choice = _choose(features, config, importance, query, groups, valid, in_order=False)
    k, n, width = choice.order.shape[1], *features.shape[1:]
    if choice.mixture is not None:
        mixture, indices, assignment = choice.mixture, choice.mixture.anchors, choice.mixture.assignment
        tokens = mixture.of(features)
        if config.generator is not None:
            tokens = config.generator(tokens, features, valid)
    else:
        mixture, indices, assignment = None, choice.order.sort(dim=1).values, None
        tokens = features if k == n else features.gather(1, indices.unsqueeze(-1).expand(-1, -1, width))
        # a method that generates gets here where there is nothing to merge
        if config.proportional_attention or generates(config.method):
            assignment = nearest_kept(features, indices)
    report = _report(choice, config, valid)
    if assignment is None:
        return ReducedTokens(tokens, indices, None, None, report)
    x, z = features.detach(), tokens.detach()
    report.measure_error = partial(reconstruction_error, x, z, assignment, choice.importance, valid)
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


def reconstruction_error(
    features: Tensor, tokens: Tensor, assignment: Tensor, importance: Tensor, valid: Tensor | None
) -> Tensor:
    """sum_i w_i |x_i - z_a(i)|² / sum_i w_i |x_i - mean|² with `cluster_weights` w: (B,) float32, 0 if all is kept."""
    x, weights = features.float(), cluster_weights(importance, valid)
    weights = weights / weights.sum(1, keepdim=True)
    stand_in = tokens.float().gather(1, assignment.unsqueeze(-1).expand_as(x))
    mean = torch.bmm(weights.unsqueeze(1), x)
    lost = (weights * torch.linalg.vector_norm(x - stand_in, dim=-1).square()).sum(1)
    variance = (weights * torch.linalg.vector_norm(x, dim=-1).square()).sum(1) - mean.square().sum((1, 2))
    return lost / torch.where(variance > 0, variance, 1)


def select_order(
    features: Tensor,
    config: TokenPrunerConfig,
    importance: Tensor | None = None,
    query: Tensor | None = None,
    groups: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The choice of `reduce_tokens` alone, (B, K) long in the order taken. Arguments and errors as there.

    Of methods that generate: the anchors of their tokens, rising.
    """
    return _choose(features, _told(config, importance), importance, query, groups, valid).order


class _Choice(NamedTuple):
    """Order taken (B, K), importance (B, N) float32, coverage (B,) where the method knows it, kernel of the tokens."""

    order: Tensor
    importance: Tensor
    coverage: Tensor | None
    kernel: TokenKernel
    mixture: Mixture | None = None

    @classmethod
    def of(cls, made: Tensor | Covered | Mixture, importance: Tensor, kernel: TokenKernel) -> _Choice:
        """What a method returned."""
        if isinstance(made, Mixture):
            return cls(made.anchors, importance, None, kernel, made)
        order, coverage = made if isinstance(made, Covered) else (made, None)
        return cls(order, importance, coverage, kernel)


def _told(config: TokenPrunerConfig, importance: Tensor | None) -> TokenPrunerConfig:
    """The config for an importance that is given: not the distinctiveness which "auto" may stand for."""
    return replace(config, importance="cls") if importance is not None and config.importance == "auto" else config


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
    check_groups(config, groups)
    groups = check_shapes(features, importance, query, groups, valid)
    k = config.tokens_to_keep(features.shape[1])
    with torch.autocast(features.device.type, enabled=False):
        x = features.float()
        check_values(importance, groups, valid, k)
        kernel = TokenKernel(x, config.kernel, valid)
        check_features(x, kernel)
        p = token_importance(x, config, importance, query, valid)
        if k == x.shape[1] and not in_order:
            return _Choice(torch.arange(k, device=x.device).expand(len(x), -1), p, torch.ones_like(p[:, 0]), kernel)
        if config.merge_static and groups is not None:
            runs = static_runs(x, groups, config.merge_static, k)
            if runs is not None:
                return _choose_runs(x, p, k, config, groups, runs, kernel)
        method = REPRESENTATION.row(config.method)
        known = {"kernel": kernel} if "kernel" in method.reads else {}
        return _Choice.of(method.implementation(x, p, k, config, groups=groups, valid=valid, **known), p, kernel)


def _choose_runs(
    x: Tensor, p: Tensor, k: int, config: TokenPrunerConfig, groups: Tensor, runs: Runs, kernel: TokenKernel
) -> _Choice:
    """The choice among runs of static tokens, each by its mean, at its first token; as a mixture of all tokens."""
    merged, starts = runs.mean(x), runs.starts
    method = REPRESENTATION.row(config.method).implementation
    power = max(1.0, config.coverage_weights_of(k)[1])  # that coverage will raise it to
    made = _Choice.of(method(merged, runs.total(p, power), k, config, groups=groups, valid=starts), p, kernel)
    mixture = made.mixture
    if mixture is None:
        anchors = made.order.sort(dim=1).values
        chosen = torch.zeros_like(p).scatter(1, anchors, 1.0)
        mixture = Mixture(anchors, nearest_kept(merged, anchors), chosen)
    return _Choice(mixture.anchors, p, None, kernel, runs.of_tokens(mixture))


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
            "(see hf_efficient.representation.maths.importance), or set importance='distinct'."
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


@torch.no_grad()
def _report(choice: _Choice, config: TokenPrunerConfig, valid: Tensor | None) -> SelectionReport:
    """The two normalized meters of the kept tokens."""
    with torch.autocast(choice.importance.device.type, enabled=False):
        p, coverage = shares(choice.importance, valid), choice.coverage
        if coverage is None:
            nearest = torch.zeros_like(p)
            for part in choice.order.split(512, dim=1):
                nearest = torch.maximum(nearest, choice.kernel.rows(part).amax(1))
            coverage = (coverage_weights(p, *config.coverage_weights_of(choice.order.shape[1]), valid) * nearest).sum(1)
        retained = p.gather(1, choice.order).sum(1)
    return SelectionReport(retained.clamp(0, 1), coverage.clamp(0, 1), p.shape[1], choice.order.shape[1])
