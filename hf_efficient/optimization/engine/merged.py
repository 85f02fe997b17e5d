"""Move the merged weight W + s B A of LoRA layers, with memory of the adapter's size (`perturb="merged"`).

Of the gradient G = ∂L/∂(W + s B A) the factors tell g_A = s Bᵀ G and g_B = s G Aᵀ. These determine its orthogonal
projection on the changes s (∂B A + B ∂A) that an adapter can make, and nothing else of it. The steepest ascent among
these changes is ε = ρ P/‖P‖ with the projection P, a matrix of rank 2r.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_efficient.compat.torch import convolve

from .adapters import LowRankTerm, low_rank_terms
from .exchange import Buffers
from .perturbation import Direction, Saved, Scaling, Weights, global_norm


def projection(
    a: Tensor, b: Tensor, g_a: Tensor, g_b: Tensor, s: float, precision: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Y, Z, Q_a, Q_b of P = Q_b Y + Z Q_aᵀ, the orthogonal projection of G on {∂B A + B ∂A}.

    With orthonormal bases Q_b = B W_b of the columns of B and Q_a = Aᵀ W_a of the rows of A:

        Y = Q_bᵀ G                  with Q_bᵀ G = W_bᵀ g_A / s
        Z = (I - Q_b Q_bᵀ) G Q_a    with G Q_a = g_B W_a / s
        ‖P‖² = ‖Y‖² + ‖Z‖²

    since G - P = (I - Q_b Q_bᵀ) G (I - Q_a Q_aᵀ) is orthogonal to all of them. Any A and B will do, also B = 0.

    Args:
        a: A (r, n).
        b: B (m, r).
        g_a: gradient of A.
        g_b: gradient of B.
        s: scale of the adapter, not 0.
        precision: see `basis`.

    Returns:
        Y (r, n), Z (m, r), Q_a (n, r) and Q_b (m, r).
    """
    (q_a, w_a), (q_b, w_b) = basis(a.T, precision), basis(b, precision)
    g_q = g_b @ w_a / s
    return w_b.T @ g_a / s, g_q - q_b @ (q_b.T @ g_q), q_a, q_b


def basis(factor: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """An orthonormal basis Q = F W of the columns of F, and W.

    Columns of Q and W are zero where F has fewer independent columns. Directions of F that are shorter than
    √`precision` times the longest are taken for dependent: along them rounding is a larger part of the gradient.

    Args:
        factor: F, (m, r).
        precision: relative precision of the gradients.

    Returns:
        Q (m, r) and W (r, r), in F's dtype.
    """
    wide = torch.float32 if factor.device.type == "mps" else torch.float64
    gram = (factor.to(wide).T @ factor.to(wide)).cpu().double()  # small: a matrix of r x r
    squares, vectors = torch.linalg.eigh(gram)
    least = max(precision, 1e-14) * squares[-1]  # of squares of lengths
    lengths = torch.where(squares > least, squares, torch.inf).sqrt()
    w = (vectors / lengths).to(factor)
    return factor @ w, w


class MergedWeights(Weights):
    """Weights of which LoRA's factors stay where they are; a constant term ε beside them moves the merged weight.

    All other trainable weights (heads, norms, sparse deltas) move as in `Weights`; the norm is over all together.

    Args:
        parameters, active_only, buffers: as for `Weights`.
        terms: the low-rank terms; those that the parameters lack do not move.

    Raises:
        ValueError: the parameters have one factor of a term, and not the other.

    Attributes:
        bases: Q_aᵀ (as A) and Q_b (as B) of the last `ascent`, which `moved` needs again.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        terms: list[LowRankTerm],
        active_only: bool = True,
        buffers: Buffers | None = None,
    ) -> None:
        super().__init__(parameters, None, active_only, buffers)
        own = set(self.parameters)
        self.terms = [term for term in terms if term.a in own or term.b in own]
        if any(not {term.a, term.b} <= own for term in self.terms):
            raise ValueError("The optimizer holds one of LoRA's factors A and B without the other; give it both.")
        self.bases: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def ascent(self, gradient: Direction) -> dict[Tensor, Tensor]:
        """Y in place of A's gradient and Z in place of B's (`projection`), in their shapes; the others as they are."""
        ascent, self.bases = dict(gradient), {}
        for term in self.terms:
            a, b = term.a, term.b
            g_a, g_b = ascent.pop(a, None), ascent.pop(b, None)
            if g_a is None or g_b is None or term.scale == 0:  # what is not part of the loss does not move
                continue
            precision = max(torch.finfo(g.dtype).eps for g in (g_a, g_b))
            y, z, q_a, q_b = projection(_matrix(a), _matrix(b), _matrix(g_a), _matrix(g_b), term.scale, precision)
            ascent[a], ascent[b] = y.reshape(a.shape), z.reshape(b.shape)
            self.bases[a], self.bases[b] = q_a.T.reshape(a.shape), q_b.reshape(b.shape)
        return ascent

    @contextmanager
    def moved(
        self, direction: Direction, rho: float, measure: bool = False, saved: Saved | None = None, over: bool = False
    ) -> Iterator[Saved]:
        """Inside the block the model computes with W + s B A + ε and w + ε; no factor is changed at any time.

        Gradients of A and B are then s Bᵀ G and s G Aᵀ of G at the perturbed weight, by the factors as they are.

        Args:
            direction: what `ascent` made, packed.
            rho: distance.
            measure: ignored, since no weight is there that could be measured.
            saved: ignored, since no factor changes.
            over: ignored, as `measure`.

        Yields:
            The other weights that moved, with their old values.
        """
        norm = global_norm(direction)
        if not (0 < norm < float("inf")) or rho == 0:
            yield []
            return
        low_rank = [term for term in self.terms if term.a in direction and term.a in self.bases]
        ours = {p for term in low_rank for p in (term.a, term.b)}
        others = {p: d for p, d in direction.items() if p not in ours}
        computed: list[bool] = []
        with ExitStack() as hooks:
            for term in low_rank:
                up, down = self._term(term, direction, rho / norm)
                for handle in _added(term, up, down, computed):
                    hooks.callback(handle.remove)
            with super().moved(others, rho * global_norm(others) / norm) as moved:
                yield moved
            self.took_effect = bool(computed) or (not low_rank and self.took_effect)

    @torch.no_grad()
    def _term(self, term: LowRankTerm, direction: Direction, scale: float) -> tuple[Tensor, Tensor]:
        """U (m, 2r, ...) and V (2r, n, ...) with U V = scale/s · P: PEFT multiplies what is added there by s."""
        a, b, factor = term.a, term.b, scale / term.scale
        up = torch.cat([self.bases[b], direction[b]], 1).mul_(factor)
        down = torch.cat([direction[a], self.bases[a]])
        return up.to(b.dtype), down.to(a.dtype)


def weights_to_move(
    parameters: Iterable[Tensor],
    scaling: Scaling | None,
    active_only: bool,
    merged: nn.Module | None,
    buffers: Buffers,
) -> Weights:
    """The weights of a step: merged ones, where a model with LoRA layers is given.

    Raises:
        ValueError: see `low_rank_terms`.
    """
    if merged is None:
        return Weights(parameters, scaling, active_only, buffers)
    return MergedWeights(parameters, low_rank_terms(merged), active_only, buffers)


def _added(term: LowRankTerm, up: Tensor, down: Tensor, computed: list[bool]) -> list[Any]:
    """Hooks that add U V x to B A x, whose input x (after dropout) is A's."""
    inputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[:] = args[:1]

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        computed.append(True)
        return output + _product(term.up, up, _product(term.down, down, inputs.pop()))

    return [term.down.register_forward_hook(keep), term.up.register_forward_hook(add)]


def _product(module: Any, weight: Tensor, x: Tensor) -> Tensor:
    """What the module computes, without bias, with another weight."""
    return F.linear(x, weight) if weight.ndim == 2 else convolve(module, x, weight)


def _matrix(tensor: Tensor) -> Tensor:
    """As a matrix, in float32 or better."""
    return (tensor if tensor.dtype.itemsize >= 4 else tensor.float()).detach().flatten(1)
