"""BiDST's candidates drawn without a whole gradient: by statistics of a layer's inputs and outputs, or by chance.

Of a linear layer, dL/dw_ij = sum over positions of dy_i x_j. If the two were independent its size would be about
sqrt(E[x_j^2] E[dy_i^2]), a product of two vectors, as Kronecker-factored curvature has it (Martens and Grosse, 2015,
https://huggingface.co/papers/1503.05671). So rows and columns are drawn apart, each in proportion to its factor, and
the gradients of the drawn entries alone are read. `controls.py` and `mask_work.py` measure what that gains and costs.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from hf_efficient.optimizer_state import Pace
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.topology import BiDST
from hf_efficient.sparsity.topology.levels import QUIET
from hf_efficient.sparsity.tuner.layer import BiDSTLayer

DECAY = 0.75  # share that older reads keep in the statistics
ROUNDS = 4  # of drawing, until there are enough entries that are neither active nor drawn before


class ByStatistics(BiDST):
    """Entries in proportion to the size that the statistics give their levelled gradients."""

    def begin(self, weight: SparseWeight) -> None:
        """No statistics yet."""
        super().begin(weight)
        weight.memory |= {"inputs": torch.empty(0), "outputs": torch.empty(0)}

    def gradient_indices(self, weight: SparseWeight, step: int) -> Tensor | None:
        """Those of the candidates, at exchanges too; all of them once, at the first read."""
        candidates = weight.memory["candidates"]
        return torch.cat([weight.indices, candidates.to(weight.indices.dtype)]) if len(candidates) else None

    def observe(self, weight: SparseWeight, step: int, pace: Pace) -> None:
        """As BiDST; the first candidates are drawn, too."""
        if not len(weight.memory["candidates"]):
            self.after_exchange(weight)
            read = weight.gradient_indices = self.gradient_indices(weight, step)
            assert weight.gradient is not None
            assert read is not None
            weight.gradient = weight.gradient.index_select(0, read)
        super().observe(weight, step, pace)

    def after_exchange(self, weight: SparseWeight) -> None:
        """As BiDST, with levels by the statistics."""
        weight.memory["levels"] = self.input_levels(weight)
        super().after_exchange(weight)

    def new_candidates(self, weight: SparseWeight, kept: Tensor, count: int) -> Tensor:
        """About `count` drawn ones."""
        return drawn(*self.shares(weight), count, weight.mask().index_fill_(0, kept, True))

    def input_levels(self, weight: SparseWeight) -> Tensor:
        """(in,): what `levels_of` finds in a whole gradient, by the statistics."""
        inputs = weight.memory["inputs"]
        return (inputs / inputs.mean()).sqrt().clamp_min(QUIET).pow(self.levelling)

    def shares(self, weight: SparseWeight) -> tuple[Tensor, Tensor]:
        """(out,) and (in,): how often rows and columns are drawn."""
        return weight.memory["outputs"].sqrt(), weight.memory["inputs"].sqrt() / weight.memory["levels"]


class ByChance(ByStatistics):
    """As many entries, any."""

    def shares(self, weight: SparseWeight) -> tuple[Tensor, Tensor]:
        """All alike."""
        return torch.ones_like(weight.memory["outputs"]), torch.ones_like(weight.memory["inputs"])


def drawn(rows: Tensor, columns: Tensor, count: int, taken: Tensor) -> Tensor:
    """About `count` entries that are not taken, rising: as many as are found in some rounds.

    Args:
        rows: (out,) shares.
        columns: (in,) shares.
        count: 0 at least.
        taken: (out * in,) bool.
    """
    found = torch.zeros_like(taken)
    missing = count
    for _ in range(ROUNDS):
        at = spread(rows, missing).mul_(len(columns)).add_(spread(columns, missing)[torch.randperm(missing)])
        found.index_fill_(0, at, True)
        entries = found.logical_and_(~taken).nonzero().flatten()
        missing = count - len(entries)
        if missing <= count // 10:
            break
    return entries


def spread(shares: Tensor, count: int) -> Tensor:
    """(count,) int64: numbers 0, 1, ..., rising, each as often as its share says."""
    ends = (shares.cumsum(0) * (count / shares.sum())).floor_().long()
    ends[-1] = count
    return torch.repeat_interleave(torch.diff(ends, prepend=ends.new_zeros(1)))


def keep_statistics() -> Any:
    """Note, in every forward whose gradients a `ByStatistics` reads, what it draws by; returns the hook's handle."""
    return register_module_forward_hook(_note)


@torch.no_grad()
def _note(layer: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
    if not (isinstance(layer, BiDSTLayer) and result.requires_grad):
        return
    for weight in layer.bidst_weight.values():
        assert isinstance(weight, SparseWeight)
        if weight.collecting and "inputs" in weight.memory:
            _add(weight, "inputs", inputs[0])
            result.register_hook(lambda gradient, weight=weight: _add(weight, "outputs", gradient))


@torch.no_grad()
def _add(weight: SparseWeight, name: str, values: Tensor) -> None:
    """A layer's inputs or the gradients of its outputs, (..., features), to their running second moments."""
    began = time.perf_counter()
    square = values.detach().flatten(0, -2).square().mean(0)
    before = weight.memory[name]
    weight.memory[name] = square.lerp(before, DECAY) if len(before) else square
    weight.seconds += time.perf_counter() - began
