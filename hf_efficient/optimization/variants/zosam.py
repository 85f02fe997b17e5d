"""ZO-SAM (CVPR 2026, arXiv 2603.13115): the ascent direction is estimated from losses alone, without a backward pass.

It also has a guided form, our own: the same number of losses, evaluated along the last gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hf_efficient.optimization.engine.perturbation import Direction, Saved, Weights, dot, global_norm, shard_rank
from hf_efficient.optimization.engine.variant import Batch, Variant

if TYPE_CHECKING:
    from hf_efficient.optimization.arguments import SAMArguments


@torch.no_grad()
def zo_gradient(
    directions: Iterable[dict[Tensor, Tensor]], slope: Callable[[Direction], float]
) -> dict[Tensor, Tensor]:
    """m · ĝ, with ĝ = (1/m) Σ_i [L(w + δ z_i) - L(w - δ z_i)] / (2δ) · z_i and z_i ~ N(0, I).

    The perturbation ε = ρ ĝ / ‖ĝ‖₂ does not depend on the length of the estimate; ∇L(w + ε) is then taken exactly.

    Args:
        directions: z_1 ... z_m, packed; overwritten.
        slope: [L(w + δ z) - L(w - δ z)] / (2δ) of a direction z.
    """
    g: dict[Tensor, Tensor] = {}
    for z in directions:
        s = slope(z)
        for p in z:
            z[p].mul_(s)
            g[p] = g[p].add_(z[p]) if p in g else z[p]
    return g


def directional_derivative(
    weights: Weights, batch: Batch, saved: Saved, z: Direction, delta: float, fraction: float
) -> float:
    """[L(w + δ z) - L(w - δ z)] / (2δ): two losses; the weights are afterwards as before, to the bit."""
    losses = []
    for sign in (1, -1):
        weights.add(z, sign * delta)
        losses.append(batch.loss(fraction))
        weights.put_back(saved)
    return (losses[0] - losses[1]) / (2 * delta)


class ZOSAMVariant(Variant):
    """2m forward passes without graph, then one forward and one backward pass at w + ε.

    Directions have active entries only and come from a generator of their own, seeded by (seed, step, i): the same
    on every process, and never stored.

    With m = 1 the step can only go to w + ρ z/‖z‖ or to w - ρ z/‖z‖. If δ is None these two points are probed, and
    the pass that probes one of them can be the step's own (`Batch.at_higher_loss`).

    Args:
        num_queries: m.
        delta: δ; None probes at the distance of the step, δ_i = ρ/‖z_i‖.
        probe_fraction: share of the batch that the losses are taken on.
        seed: of the directions.
    """

    draws: ClassVar[bool] = True  # its directions for one step, and does not remember them
    needs_batch = needs_loss = True
    idle_reason = (
        "the losses on both sides of the weights are equal in every probed direction, as 16-bit losses often are. Use "
        "float32 weights (in a Trainer upcast=True), or a larger delta or rho."
    )

    def __init__(self, num_queries: int, delta: float | None, probe_fraction: float, seed: int) -> None:
        super().__init__()
        self.num_queries, self.delta, self.probe_fraction, self.seed = num_queries, delta, probe_fraction, seed

    @classmethod
    def of(cls, arguments: SAMArguments, optimizer: Callable[[], Any]) -> ZOSAMVariant:
        """A new one with these settings; the guided form, if they say so."""
        m, fraction, seed = arguments.num_queries, arguments.probe_fraction, arguments.direction_seed
        return GuidedZOSAMVariant(m, fraction, seed) if arguments.guided else cls(m, arguments.delta, fraction, seed)

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at w + ε inside the block."""
        if rho == 0:
            yield
            return
        if self.num_queries == 1 and self.delta is None:
            with (
                weights.moved(self.direction(weights, 0), rho, measure, over=self.draws) as saved,
                batch.at_higher_loss(lambda: weights.mirror(saved), self.probe_fraction),
            ):
                yield
            return
        with weights.kept() as saved:

            def slope(z: Direction) -> float:
                delta = rho / max(global_norm(z), 1e-30) if self.delta is None else self.delta
                return directional_derivative(weights, batch, saved, z, delta, self.probe_fraction)

            with weights.moved(zo_gradient(self.directions(weights), slope), rho, measure, saved):
                yield

    def directions(self, weights: Weights) -> Iterator[dict[Tensor, Tensor]]:
        """z_1 ... z_m of the present step, packed, each new."""
        return (self.direction(weights, i) for i in range(self.num_queries))

    @torch.no_grad()
    def direction(self, weights: Weights, i: int) -> dict[Tensor, Tensor]:
        """z_i of the present step, packed, in memory that is kept for copies of the weights."""
        generators: dict[torch.device, torch.Generator] = {}
        direction = {}
        for p in weights.parameters:
            like = weights.values(p, p)
            if like.device not in generators:
                seed = np.random.SeedSequence([self.seed, self.step, i, shard_rank(p)]).generate_state(1, np.uint64)
                generators[like.device] = torch.Generator(like.device).manual_seed(int(seed[0]))
            direction[p] = weights.buffers.take(p, like).normal_(generator=generators[like.device])
        return direction


class GuidedZOSAMVariant(ZOSAMVariant):
    """ZO-SAM whose m directions start with what is known: the last gradient, then an average of those before it.

    The directions d_1 ... d_m are made orthonormal (random ones fill up). Losses at w ± ρ d_i give the slopes s_i, and
    ĝ = Σ_i s_i d_i is the projection of the batch's gradient on their span. With m = 1 it is S2-SAM that finds, by two
    losses, on which side of w the loss is higher.
    """

    AVERAGE = 0.9  # of the gradients before the last one
    draws = False

    def __init__(self, num_queries: int, probe_fraction: float, seed: int) -> None:
        super().__init__(num_queries, None, probe_fraction, seed)
        self.memory = {"gradient": {}, "average": {}} if num_queries > 1 else {"gradient": {}}

    @contextmanager
    def perturbed(self, weights: Weights, batch: Batch, rho: float, measure: bool = False) -> Iterator[None]:
        """Weights at w + ε inside the block."""
        with super().perturbed(weights, batch, rho, measure):
            yield
        self._remember(batch.kept_gradients())

    @torch.no_grad()
    def directions(self, weights: Weights) -> Iterator[dict[Tensor, Tensor]]:
        """d_1 ... d_m, packed, each new; fewer where one lies in the span of the earlier ones."""
        basis: list[dict[Tensor, Tensor]] = []
        for i in range(self.num_queries):
            d = self.direction(weights, i)
            for other in basis:
                along = dot(d, other)
                d = {p: d[p] - along * other[p] if p in other else d[p] for p in d}
            if (norm := global_norm(d)) > 0:
                basis.append({p: x / norm for p, x in d.items()})
        return iter(basis)

    def direction(self, weights: Weights, i: int) -> dict[Tensor, Tensor]:
        """What is known, packed, else a random direction; neither is made orthonormal."""
        known = list(self.memory.values())
        return weights.pack(known[i]) if i < len(known) and known[i] else super().direction(weights, i)

    @torch.no_grad()
    def _remember(self, gradients: dict[Tensor, Tensor]) -> None:
        if not gradients:
            return
        last, average = self.memory["gradient"], self.memory.get("average")
        if average is not None:
            for p, g in last.items():
                average[p] = average[p].lerp(g, 1 - self.AVERAGE) if p in average else g
        self.memory["gradient"] = gradients
