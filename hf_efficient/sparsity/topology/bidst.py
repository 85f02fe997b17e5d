"""BiDST: mask scores learned by a bi-level hyper-gradient, on a restricted set of candidates (Ji et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from hf_efficient.sparsity.sparse_weight import SparseWeight, check_indices

from .base import Topology, expect

if TYPE_CHECKING:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig

TEMPERATURE = 1.0  # tau of the Gumbel-sigmoid, in units of the largest score
LEAST_CHANGE = 0.005  # share of the active weights; below it the mask stays
KEPT = 0.5  # share of the candidates that stay candidates after an exchange: the largest dormant weights
QUIET = 0.01  # smallest level of an input, relative to the layer: noise of quiet inputs is not amplified further
GAMMA = 5e-4  # L2 penalty of the lower level on dormant weights; active ones have the optimizer's weight decay


def hyper_gradient(theta: Tensor, g: Tensor, m: Tensor | float, implicit_weight: float) -> Tensor:
    """dL/dm = theta * g - (1/gamma) * m * g * g, the Hessian-free gradient of the upper level.

    Lower level: theta*(m) = argmin L(m * theta) + gamma/2 ||theta||^2. With d2L/dtheta2 := 0 the implicit function
    theorem gives d theta*/dm = -(1/gamma) diag(g), and the chain rule the line above. The paper's equations 8 to 11
    were never published as code; this is the derivation of its ancestor BIP (Zhang et al., NeurIPS 2022).

    Args:
        theta: weights, any shape; where m is 0, the dormant weights.
        g: dL/dz at z = m * theta, same shape.
        m: mask, 0 or 1, same shape.
        implicit_weight: 1/gamma. As in BIP a setting of its own: with 1/gamma of a usual weight decay the second term
            would dominate.
    """
    return theta * g - implicit_weight * m * g * g


def gumbel_slope(psi: Tensor, threshold: Tensor, generator: torch.Generator) -> Tensor:
    """dm/dpsi = m (1 - m) / tau of the relaxed mask m = sigmoid((psi - threshold + G1 - G2) / tau), G Gumbel noise.

    Args:
        psi: scores, any shape.
        threshold: the lowest score of an active weight.
        generator: source of noise, on the CPU.
    """
    u = torch.rand(psi.shape, generator=generator).clamp_(1e-6, 1 - 1e-6).to(psi.device)
    odds = (psi - threshold).exp_().mul_(u / (1 - u)).pow_(1 / TEMPERATURE)  # m / (1 - m): G1 - G2 is logit(u)
    return odds / (1 + odds).square_().mul_(TEMPERATURE)


def input_levels(gradient: Tensor, dim: int) -> Tensor:
    """Root mean square of the gradients of each input's weights, relative to that of the whole layer.

    A few inputs are tens of times larger than the others (frequent words; a few channels of a pretrained network), and
    so are the gradients of all their weights. Chosen by raw gradients, most new weights would go to these inputs, where
    their values are nearly redundant.

    Args:
        gradient: dL/dz, (out, ...) or, with dim = 0, (in, out).
        dim: of the inputs, 0 or 1; dimensions after 1 count as part of it.

    Returns:
        One number >= QUIET for each input; ones where the whole gradient is zero.
    """
    square = gradient.flatten(1).square().mean(1 - dim)
    whole = square.mean()
    return torch.where(whole > 0, square / whole, torch.ones_like(square)).sqrt_().clamp_min_(QUIET)


@dataclass
class BiDST(Topology):
    """Scores psi on the active weights and on candidates; at an exchange the mask becomes the top-k of the scores.

    Candidates are a restricted set of inactive weights. Each keeps a dormant value, which follows its own gradient and
    gives it a score. A dropped weight becomes a candidate with the value it had.

    `memory` of a SparseWeight: `candidates` (c,) indices; `dormant` (c,) their values (lower level); `learned` (k,) and
    `candidate_learned` (c,), what the upper level has added to the scores since the last exchange.

    Args:
        candidates: c / k.
        score_interval: steps between two hyper-gradients.
        score_lr: beta of the upper level. Hyper-gradients are divided by their root mean square, since a top-k does not
            depend on the scale of the scores.
        implicit_weight: 1/gamma of the hyper-gradient.
        fairness: gradients are first divided by `input_levels` (of the last step that read all of them) to this power.
            0 leaves them raw; with 1 all inputs have gradients of the same size.
    """

    candidates: float = 5.0
    score_interval: int = 10
    score_lr: float = 0.005
    implicit_weight: float = 1e-4
    fairness: float = 0.5

    @classmethod
    def of(cls, config: BiDSTConfig, total_steps: int) -> Self:
        """With BiDST's own settings; deltas use full fairness, since pretrained inputs differ most (both measured)."""
        schedule = (total_steps, config.update_interval, config.drop_fraction, config.stop_fraction)
        scores = (config.candidates, config.score_interval, config.score_lr, config.implicit_weight)
        return cls(*schedule, *scores, fairness=1.0 if config.target == "delta" else 0.5)

    def reads_gradient(self, step: int) -> bool:
        """Every `score_interval` steps, and at an exchange."""
        return step < self.stop_fraction * self.total_steps and (step % self.score_interval == 0 or self.due(step))

    def gradient_indices(self, weight: SparseWeight, step: int) -> Tensor | None:
        """The indices with a score; all indices where new candidates are chosen."""
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
        """Lengths and dtypes as `begin` and `after_exchange` leave them; candidates are indices of this weight."""
        candidates = memory.get("candidates", torch.empty(0))
        check_indices(candidates, weight.numel, "candidates")
        expect(memory, "candidates", torch.int64, len(candidates))
        for name in ("dormant", "candidate_learned"):
            expect(memory, name, torch.float32, len(candidates))
        expect(memory, "learned", torch.float32, len(weight.indices))
        if len(candidates):
            expect(memory, "levels", torch.float32, weight.inputs)

    def observe(self, weight: SparseWeight, step: int, effective_lr: float, generator: torch.Generator) -> None:
        """One step of the upper level on the scores, and one of the lower level on the dormant weights."""
        self.level(weight)
        memory, g = weight.memory, weight.gradient
        assert g is not None
        if not len(memory["candidates"]):
            self.after_exchange(weight)
        g_active = weight.active_gradient()
        g_dormant = g.index_select(0, memory["candidates"]) if weight.gradient_indices is None else g[len(g_active) :]
        h = hyper_gradient(weight.values.detach().float(), g_active, 1.0, self.implicit_weight)
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
        """Divide the gradient by the level of each weight's input to the power `fairness`."""
        assert weight.gradient is not None
        if weight.gradient_indices is None:
            whole, dim = weight.gradient.view(weight.matrix), weight.input_dim
            levels = input_levels(whole.transpose(0, 1).flatten(1) if dim else whole[0], dim).pow_(self.fairness)
            weight.memory["levels"] = levels
            weight.gradient = (whole / levels.view(weight.matrix[0], -1).unsqueeze(2 - dim)).flatten()
        else:
            weight.gradient /= weight.memory["levels"].index_select(0, weight.input_of(weight.gradient_indices))

    def scores(self, weight: SparseWeight) -> tuple[Tensor, Tensor]:
        """psi of the active weights (k,) and of the candidates (c,): |theta| / max |theta| plus what was learned."""
        theta, memory = weight.values.detach().float().abs(), weight.memory
        unit = theta.max().clamp_min(1e-30)
        return theta / unit + memory["learned"], memory["dormant"].abs() / unit + memory["candidate_learned"]

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """psi of the active weights."""
        return self.scores(weight)[0]

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """psi of the candidates."""
        return weight.memory["candidates"], self.scores(weight)[1]

    def urgency(self, drop: Tensor, grow: Tensor) -> Tensor:
        """What an exchange gains; both are scores of the same kind."""
        return grow - drop

    def accepts(self, drop: Tensor, grow: Tensor) -> Tensor:
        """Those that make the mask the top-k of all scores; none if they would be too few (the paper's flag F)."""
        better = grow > drop
        return better & (better.sum() >= LEAST_CHANGE * len(drop) / max(self.drop_fraction, 1e-9))

    def before_exchange(self, weight: SparseWeight, slots: Tensor, indices: Tensor) -> Tensor | None:
        """Dropped weights become candidates in place of the grown ones, with their values; grown ones start at zero."""
        memory = weight.memory
        candidates = memory["candidates"]
        position_of = torch.empty(weight.numel, dtype=torch.int64, device=candidates.device)
        position_of.scatter_(0, candidates, torch.arange(len(candidates), device=candidates.device))
        at = position_of[indices]
        n = min(len(slots), len(indices))
        memory["candidates"][at[:n]] = weight.long_indices[slots[:n]]
        memory["dormant"][at[:n]] = weight.values.detach()[slots[:n]].float()
        return None

    def after_exchange(self, weight: SparseWeight) -> None:
        """New candidates: the best of the old ones, and the inactive weights with the largest gradient."""
        memory, g = weight.memory, weight.gradient
        assert g is not None
        count = min(max(1, int(self.candidates * len(weight.indices))), weight.numel - len(weight.indices))
        # under a global budget a layer may have grown more weights than it has dropped
        inactive = ~weight.mask().index_select(0, memory["candidates"])
        old, dormant = memory["candidates"][inactive], memory["dormant"][inactive]
        best = dormant.abs().topk(min(len(old), int(KEPT * count)), sorted=False).indices
        kept = old[best]
        strength = g.abs()
        strength.index_fill_(0, weight.long_indices, -1.0).index_fill_(0, kept, -1.0)
        fresh = strength.topk(count - len(kept), sorted=False).indices
        memory["candidates"] = torch.cat([kept, fresh])
        memory["dormant"] = torch.cat([dormant[best], g.new_zeros(len(fresh))])
        memory["learned"] = g.new_zeros(len(weight.indices))
        memory["candidate_learned"] = g.new_zeros(count)
