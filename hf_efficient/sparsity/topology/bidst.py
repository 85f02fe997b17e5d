"""BiDST: which weights are active is learned beside their values, by a bi-level problem (Ji et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from hf_efficient.optimizer_state import Pace
from hf_efficient.sparsity.sparse_weight import SparseWeight, check_indices

from .base import Topology, expect
from .levels import levelled, levels_of

if TYPE_CHECKING:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig

LEAST_CHANGE = 0.005  # share of the active weights; below it the mask stays
KEPT = 0.5  # share of the candidates that stay candidates after an exchange: the largest dormant weights


def hyper_gradient(theta: Tensor, g: Tensor, m: Tensor | float, implicit_weight: float) -> Tensor:
    """dL/dm = theta * g - (1/gamma) * m * g * g, the Hessian-free gradient of the upper level.

    Lower level: theta*(m) = argmin L(m * theta) + gamma/2 ||theta||^2. With d2L/dtheta2 := 0 the implicit function
    theorem gives d theta*/dm = -(1/gamma) diag(g), and the chain rule the line above. The paper's equations 8 to 11
    were never published as code; this is the derivation of its ancestor BIP (Zhang et al., NeurIPS 2022).

    Args:
        theta: weights, any shape; where m is 0, the dormant weights.
        g: dL/dz at z = m * theta, same shape.
        m: mask, 0 or 1, same shape.
        implicit_weight: 1/gamma.
    """
    return theta * g - implicit_weight * m * g * g


def score(theta: Tensor) -> Tensor:
    """psi = |theta|: the order of what the upper level has learned, -sum_t dL/dm, since training began.

    Under gradient descent theta_{t+1} = theta_t - eta g_t, so that theta_{t+1}^2 - theta_t^2 = -2 eta (theta_t g_t -
    eta/2 g_t^2): the change of theta^2 is the hyper-gradient with 1/gamma = eta/2, times -2 eta. Its sum over a run
    telescopes to theta_T^2 - theta_0^2, and scores that begin at theta_0^2 (BIP begins at the magnitudes too) are
    theta_T^2 at every step. So the upper level needs no state of its own, and no noise.

    Args:
        theta: weights, any shape; inactive ones as their own gradients have moved them.
    """
    return theta.abs()


@dataclass
class BiDST(Topology):
    """The mask is the top-k of psi over the active weights and candidates, which learn beside them.

    Candidates are a restricted set of inactive weights. Each has a dormant value, which begins where the weight was
    before training and which its own levelled gradient moves as far as the optimizer would. A dropped weight becomes a
    candidate with the value it had. A grown one enters the mask at its edge: with its sign, and the magnitude of the
    weakest weight that stays. The others have learned without it, so all that it has gathered would be too much.

    `memory` of a SparseWeight: `candidates` (c,) indices; `dormant` (c,) their values (lower level); `square` (c,) sum
    of their squared gradients and `reads` (c,) how many; `levels` (inputs,) at the last read of the whole gradient, and
    `level` (c,) that of each candidate's input.

    Args:
        candidates: c / k.
        score_interval: steps between two reads of the candidates' gradients.
        levelling: gradients of inactive weights are divided by the level of their input to this power (`levels.py`).
    """

    candidates: float = 5.0
    score_interval: int = 5
    levelling: float = 0.5

    @classmethod
    def of(cls, config: BiDSTConfig, total_steps: int) -> Self:
        """With BiDST's own settings; deltas level fully, since pretrained inputs differ most (both measured)."""
        usual = 1.0 if config.target == "delta" else 0.5
        return cls(
            total_steps,
            **cls.schedule(config),
            candidates=config.candidates,
            score_interval=config.score_interval,
            levelling=usual if config.levelling is None else config.levelling,
        )

    @property
    def reads_start(self) -> bool:
        """Where dormant weights begin."""
        return True

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
        none = torch.empty(0, device=weight.indices.device)
        weight.memory |= {"candidates": none.long(), "dormant": none, "square": none, "reads": none, "level": none}

    def check_memory(self, weight: SparseWeight, memory: Mapping[str, Tensor]) -> None:
        """Lengths and dtypes as `begin` and `after_exchange` leave them; candidates are inactive entries."""
        candidates = memory.get("candidates", torch.empty(0))
        check_indices(candidates, weight.numel, "candidates")
        expect(memory, "candidates", torch.int64, len(candidates))
        if bool(weight.mask()[candidates.to(weight.indices.device)].any()):
            raise ValueError("some candidates are active weights")
        for name in ("dormant", "square", "reads", "level"):
            expect(memory, name, torch.float32, len(candidates))
        if len(candidates):
            expect(memory, "levels", torch.float32, weight.inputs)

    def observe(self, weight: SparseWeight, step: int, pace: Pace) -> None:
        """Move the dormant weights as the optimizer would have moved them since the last read."""
        memory = weight.memory
        whole = weight.gradient_indices is None
        if whole:
            memory["levels"] = levels_of(weight, self.levelling)
            memory["level"] = memory["levels"][weight.input_of(memory["candidates"])]
        if not len(memory["candidates"]):
            self.after_exchange(weight)
        assert weight.gradient is not None
        g = weight.gradient[memory["candidates"]] if whole else weight.gradient[len(weight.indices) :]
        g = g / memory["level"]
        g += pace.coupled * memory["dormant"]
        memory["square"] += g.square()
        memory["reads"] += 1
        if pace.by_size:
            g /= (memory["square"] / memory["reads"]).sqrt_().clamp_min_(1e-30)
        steps = step - self.last_read(step)
        memory["dormant"] *= max(0.0, 1 - steps * pace.decay)
        memory["dormant"] -= steps * pace.rate * g

    def last_read(self, step: int) -> int:
        """The last step before `step` that read gradients; 0 if there is none."""
        return max((step - 1) // every * every for every in (self.score_interval, self.update_interval))

    def drop_scores(self, weight: SparseWeight) -> Tensor:
        """psi of the active weights."""
        return score(weight.whole_values().float())

    def grow_scores(self, weight: SparseWeight, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """psi of the candidates."""
        return weight.memory["candidates"], score(weight.memory["dormant"])

    def urgency(self, drop: Tensor, grow: Tensor) -> Tensor:
        """What an exchange gains; both are scores of the same kind."""
        return grow - drop

    def accepts(self, drop: Tensor, grow: Tensor) -> Tensor:
        """Those that make the mask the top-k of all scores; none if they would be too few (the paper's flag F)."""
        better = grow > drop
        return better & (better.sum() >= LEAST_CHANGE * len(drop) / max(self.drop_fraction, 1e-9))

    def before_exchange(self, weight: SparseWeight, slots: Tensor, indices: Tensor) -> Tensor | None:
        """Dropped weights become candidates in place of the grown ones, with their values; see the class."""
        memory, theta = weight.memory, weight.whole_values().float()
        psi = score(theta)
        edge = psi.min() if len(slots) == len(psi) else psi.index_fill(0, slots, torch.inf).min()
        dormant_at = torch.zeros(weight.numel, device=theta.device).index_copy_(
            0, memory["candidates"], memory["dormant"]
        )
        first = dormant_at[indices].clamp_(-edge, edge)
        grown = torch.zeros(weight.numel, dtype=torch.bool, device=theta.device).index_fill_(0, indices, True)
        stay = (~grown[memory["candidates"]]).nonzero().flatten()
        dropped = {"candidates": weight.long_indices[slots], "dormant": theta[slots]}
        for name in ("candidates", "dormant", "square", "reads"):
            old = memory[name][stay]
            memory[name] = torch.cat([old, dropped.get(name, old.new_zeros(len(slots)))])
        return first

    def new_candidates(self, weight: SparseWeight, kept: Tensor, count: int) -> Tensor:
        """(count,) inactive entries beside those that are kept: the ones with the largest levelled gradients."""
        strength = levelled(weight, weight.memory["levels"])
        strength.index_fill_(0, weight.long_indices, -1.0).index_fill_(0, kept, -1.0)
        return strength.topk(count, sorted=False).indices

    def after_exchange(self, weight: SparseWeight) -> None:
        """Candidates: the best of the old ones, and new ones."""
        memory = weight.memory
        count = min(max(1, int(self.candidates * len(weight.indices))), weight.numel - len(weight.indices))
        old = memory["candidates"]
        best = score(memory["dormant"]).topk(min(len(old), int(KEPT * count)), sorted=False).indices
        fresh = self.new_candidates(weight, old[best], count - len(best))
        nothing = torch.zeros(len(fresh), device=fresh.device)
        start = nothing if weight.start is None else weight.start[fresh].float()
        memory["candidates"] = torch.cat([old[best], fresh])
        for name, first in (("dormant", start), ("square", nothing), ("reads", nothing)):
            memory[name] = torch.cat([memory[name][best], first])
        memory["level"] = memory["levels"][weight.input_of(memory["candidates"])]
