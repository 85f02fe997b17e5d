"""BiDST: mask scores learned by a bi-level hyper-gradient, on a restricted set of candidates (Ji et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight, check_places

from .topology import Topology, expect

TEMPERATURE = 1.0  # tau of the Gumbel-sigmoid, in units of the largest score
LEAST_CHANGE = 0.005  # share of the living below which an exchange is not worth a new mask
KEPT = 0.5  # share of the candidates that outlives an exchange, the largest dormant weights
QUIET = 0.01  # of the layer's gradient: an input with less counts as one with this, lest chance noise is blown up
GAMMA = 5e-4  # L2 penalty of the lower level on dormant weights; that of living ones is the optimizer's weight decay


def hyper_gradient(theta: Tensor, g: Tensor, m: Tensor | float, implicit_weight: float) -> Tensor:
    """dL/dm = theta * g - (1/gamma) * m * g * g, the Hessian-free gradient of the upper level.

    Lower level: theta*(m) = argmin L(m * theta) + gamma/2 ||theta||^2. With d2L/dtheta2 := 0 the implicit function
    theorem gives d theta*/dm = -(1/gamma) diag(g), and the chain rule the line above. The paper's equations 8 to 11
    were never published as code; this is the derivation of its ancestor BIP (Zhang et al., NeurIPS 2022).

    Args:
        theta: weights, any shape; of a dead place, the dormant weight it would come back with.
        g: dL/dz at z = m * theta, same shape.
        m: mask, 0 or 1, same shape.
        implicit_weight: 1/gamma. As in BIP a factor of its own: 1/gamma of a usual weight decay would drown the rest.
    """
    return theta * g - implicit_weight * m * g * g


def gumbel_slope(psi: Tensor, threshold: Tensor, generator: torch.Generator) -> Tensor:
    """dm/dpsi = m (1 - m) / tau of the relaxed mask m = sigmoid((psi - threshold + G1 - G2) / tau), G Gumbel noise.

    Args:
        psi: scores, any shape.
        threshold: score between life and death.
        generator: source of noise, on the CPU.
    """
    u = torch.rand(psi.shape, generator=generator).clamp_(1e-6, 1 - 1e-6).to(psi.device)
    odds = (psi - threshold).exp_().mul_(u / (1 - u)).pow_(1 / TEMPERATURE)  # m / (1 - m): G1 - G2 is logit(u)
    return odds / (1 + odds).square_().mul_(TEMPERATURE)


def input_levels(gradient: Tensor, dim: int) -> Tensor:
    """How strong the gradients of each input's weights are, relative to the whole layer; root mean squares.

    A few inputs are tens of times larger than the others (frequent words; a few channels of a pretrained network), and
    so are the gradients of all their weights. Chosen by raw gradients, most new weights would go to these inputs, where
    they say nearly the same.

    Args:
        gradient: dL/dz, (out, ...) or, with dim = 0, (in, out).
        dim: of the inputs, 0 or 1; everything behind dimension 1 belongs to it.

    Returns:
        One number >= QUIET for each input; ones where the whole layer has no gradient.
    """
    square = gradient.flatten(1).square().mean(1 - dim)
    whole = square.mean()
    return torch.where(whole > 0, square / whole, torch.ones_like(square)).sqrt_().clamp_min_(QUIET)


@dataclass
class BiDST(Topology):
    """Every place has a weight, but only k of them count; a restricted set of the others is trained in their shadow.

    Memory of a SparseWeight: `candidates` (c,) dead places; `dormant` (c,) the weights they would come back with, which
    follow their own gradient (lower level); `learned` (k,) and `candidate_learned` (c,), what the upper level has added
    to the scores since they were last set. A weight that dies becomes a candidate with the value it had.

    Args:
        candidates: c / k.
        score_interval: steps between two hyper-gradients.
        score_lr: beta of the upper level. Hyper-gradients are divided by their root mean square, since a top-k knows no
            units.
        implicit_weight: 1/gamma of the hyper-gradient.
        fairness: gradients are divided by `input_levels` (of the last step at which all were read) to this power
            first; 0 takes them raw, with 1 no input is louder than another.
    """

    candidates: float = 5.0
    score_interval: int = 10
    score_lr: float = 0.005
    implicit_weight: float = 1e-4
    fairness: float = 0.5

    def reads_gradient(self, step: int) -> bool:
        """Every `score_interval` steps, and when weights are exchanged."""
        return step < self.stop * self.total_steps and (step % self.score_interval == 0 or self.due(step))

    def watched(self, weight: SparseWeight, step: int) -> Tensor | None:
        """Those that have a score; all when new candidates are due."""
        candidates = weight.memory["candidates"]
        if self.due(step) or not len(candidates):
            return None
        return torch.cat([weight.indices, candidates.to(weight.indices.dtype)])

    def begin(self, weight: SparseWeight) -> None:
        """No candidates yet."""
        device = weight.indices.device
        weight.memory |= {
            "candidates": torch.empty(0, dtype=torch.int64, device=device),
            "dormant": torch.empty(0, device=device),
            "learned": torch.zeros(len(weight.indices), device=device),
            "candidate_learned": torch.empty(0, device=device),
        }

    def check_memory(self, weight: SparseWeight, memory: Mapping[str, Tensor]) -> None:
        """Lengths and dtypes of `begin` and `settled`; candidates are places of this weight."""
        candidates = memory.get("candidates", torch.empty(0))
        check_places(candidates, weight.numel, "candidates")
        expect(memory, "candidates", torch.int64, len(candidates))
        for name in ("dormant", "candidate_learned"):
            expect(memory, name, torch.float32, len(candidates))
        expect(memory, "learned", torch.float32, len(weight.indices))
        if len(candidates):
            expect(memory, "levels", torch.float32, weight.inputs)

    def observe(self, weight: SparseWeight, step: int, effective_lr: float, generator: torch.Generator) -> None:
        """One step of the upper level on the scores, one of the lower level on dormant weights."""
        self.level(weight)
        memory, g = weight.memory, weight.gradient
        assert g is not None
        if not len(memory["candidates"]):
            self.settled(weight)
        g_living = weight.living_gradient()
        g_dormant = g.index_select(0, memory["candidates"]) if weight.watched is None else g[len(g_living) :]
        h = hyper_gradient(weight.values.detach().float(), g_living, 1.0, self.implicit_weight)
        h_dormant = hyper_gradient(memory["dormant"], g_dormant, 0.0, self.implicit_weight)
        psi, psi_dormant = self.scores(weight)
        mean_square = (h.square().sum() + h_dormant.square().sum()) / (len(h) + len(h_dormant))
        beta = self.score_lr / mean_square.sqrt().clamp_min(1e-30)
        threshold = psi.min()
        memory["learned"] -= h.mul_(gumbel_slope(psi, threshold, generator)).mul_(beta)
        memory["candidate_learned"] -= h_dormant.mul_(gumbel_slope(psi_dormant, threshold, generator)).mul_(beta)
        alpha = effective_lr * self.score_interval
        memory["dormant"] -= alpha * (g_dormant + GAMMA * memory["dormant"])

    def level(self, weight: SparseWeight) -> None:
        """Divide the gradient that was read by the level of each place's input, to the power `fairness`."""
        assert weight.gradient is not None
        if weight.watched is None:
            whole, dim = weight.gradient.view(weight.matrix), weight.input_dim
            levels = input_levels(whole.transpose(0, 1).flatten(1) if dim else whole[0], dim).pow_(self.fairness)
            weight.memory["levels"] = levels
            weight.gradient = (whole / levels.view(weight.matrix[0], -1).unsqueeze(2 - dim)).flatten()
        else:
            weight.gradient /= weight.memory["levels"].index_select(0, weight.input_of(weight.watched))

    def scores(self, weight: SparseWeight) -> tuple[Tensor, Tensor]:
        """psi of the living (k,) and of the candidates (c,): |theta| / max |theta|, plus what was learned."""
        theta, memory = weight.values.detach().float().abs(), weight.memory
        unit = theta.max().clamp_min(1e-30)
        return theta / unit + memory["learned"], memory["dormant"].abs() / unit + memory["candidate_learned"]

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """psi of the living."""
        return self.scores(weight)[0]

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """psi of the candidates."""
        return weight.memory["candidates"], self.scores(weight)[1]

    def accepts(self, dying: Tensor, coming: Tensor) -> Tensor:
        """Those of the exact top-k of all scores; none at all where they would be few (the paper's flag F)."""
        better = coming > dying
        return better & (better.sum() >= LEAST_CHANGE * len(dying) / max(self.share, 1e-9))

    def moved(self, weight: SparseWeight, slots: Tensor, places: Tensor) -> Tensor | None:
        """The dead take the candidates' seats, with the weights they had; who comes alive starts at zero."""
        memory = weight.memory
        candidates = memory["candidates"]
        seat_of = torch.empty(weight.numel, dtype=torch.int64, device=candidates.device)
        seat_of.scatter_(0, candidates, torch.arange(len(candidates), device=candidates.device))
        seats = seat_of[places]
        n = min(len(slots), len(places))
        memory["candidates"][seats[:n]] = weight.places[slots[:n]]
        memory["dormant"][seats[:n]] = weight.values.detach()[slots[:n]].float()
        return None

    def settled(self, weight: SparseWeight) -> None:
        """New candidates: the best of the old ones, and the dead places with the largest gradient."""
        memory, g = weight.memory, weight.gradient
        assert g is not None
        count = min(max(1, int(self.candidates * len(weight.indices))), weight.numel - len(weight.indices))
        dead = ~weight.alive().index_select(
            0, memory["candidates"]
        )  # under a global budget more may have come alive than died
        old, dormant = memory["candidates"][dead], memory["dormant"][dead]
        best = dormant.abs().topk(min(len(old), int(KEPT * count)), sorted=False).indices
        kept = old[best]
        strength = g.abs()
        strength.index_fill_(0, weight.places, -1.0).index_fill_(0, kept, -1.0)
        fresh = strength.topk(count - len(kept), sorted=False).indices
        memory["candidates"] = torch.cat([kept, fresh])
        memory["dormant"] = torch.cat([dormant[best], g.new_zeros(len(fresh))])
        memory["learned"] = g.new_zeros(len(weight.indices))
        memory["candidate_learned"] = g.new_zeros(count)
