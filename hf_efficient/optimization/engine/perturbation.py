"""Move the weights by a given distance and bring them back to the bit: what all variants share.

A *direction* maps parameters to tensors. It is dense (the parameter's shape) or packed: where a sparsity mask exists,
the active entries alone, in one row. `Weights.pack` makes the second of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_efficient.active_mask import active_mask
from hf_efficient.compat.torch import foreach_add_, foreach_copy_, foreach_lerp_, foreach_norm
from hf_efficient.shards import local

from .exchange import Buffers, can_exchange, exchanged

Direction = Mapping[Tensor, Tensor]
Saved = list[tuple[Tensor, Tensor]]  # parameters, and what their active entries were
#: (direction d, weights w), both packed -> the direction of ε, and the norm that it is divided by
Scaling = Callable[[Direction, Direction], tuple[Direction, float]]


class Weights:
    """The trainable weights, which can be moved along a direction.

    Args:
        parameters: those with requires_grad are moved; one that several modules share counts once.
        scaling: how distances are measured, as `asam_scaling`; None is ε = ρ d / ‖d‖₂.
        active_only: move only the entries that a sparsity mask leaves active.
        buffers: memory for copies, if it is kept from step to step.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        scaling: Scaling | None = None,
        active_only: bool = True,
        buffers: Buffers | None = None,
    ) -> None:
        self.parameters = [p for p in dict.fromkeys(parameters) if p.requires_grad]
        self.scaling = scaling
        self.active_only = active_only
        self.buffers = Buffers() if buffers is None else buffers
        self.cosine: float | None = None  # of the last perturbation and the gradient at its end; see `moved`
        self.distance = 0.0  # ‖ε‖ as it came out, which 16-bit weights make smaller than it should be
        self._intended = 0.0  # ‖ε‖ as it should be
        self.took_effect = False  # whether a variant has moved them, or changed their gradient

    def gradients(self) -> dict[Tensor, Tensor]:
        """The gradients as they are now: references, not copies."""
        return {p: p.grad for p in self.parameters if p.grad is not None}

    def dense_gradients(self) -> dict[Tensor, Tensor]:
        """The same, to be remembered: sparse ones (of `nn.Embedding(sparse=True)`) as dense copies."""
        return {p: g.to_dense() if g.is_sparse else g for p, g in self.gradients().items()}

    def take_gradients(self) -> dict[Tensor, Tensor]:
        """Return the gradients and clear them: the next backward starts from none."""
        taken = self.gradients()
        for p in taken:
            p.grad = None
        return taken

    def ascent(self, gradient: Direction) -> Direction:
        """The dense direction of the steepest ascent, of the loss with this gradient."""
        return gradient

    @torch.no_grad()
    def pack(self, direction: Direction) -> dict[Tensor, Tensor]:
        """The active entries of a dense direction. Nothing is copied where all entries are active.

        A parameter that has changed its shape since (a sparse weight with another budget) is left out.
        """
        return {p: self.values(p, d) for p, d in direction.items() if local(d).shape == local(p).shape}

    @torch.no_grad()
    def unpack(self, direction: Direction) -> dict[Tensor, Tensor]:
        """The dense form of a packed direction, zero where entries are inactive."""
        return {p: d if (m := self.mask(p)) is None else torch.zeros_like(p).masked_scatter_(m, d)
                for p, d in direction.items()}  # fmt: skip

    def mask(self, parameter: Tensor) -> Tensor | None:
        """Which entries may move, or None for all."""
        return active_mask(parameter) if self.active_only else None

    def values(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """The active entries of a tensor of the parameter's shape, on this process."""
        mask = self.mask(parameter)
        return local(tensor) if mask is None else local(tensor)[mask]

    @torch.no_grad()
    def add(self, direction: Direction, scale: float) -> None:
        """w ← w + scale · d, on the active entries."""
        whole = [p for p in direction if self.mask(p) is None]
        if whole:
            foreach_add_([local(p) for p in whole], [direction[p] for p in whole], alpha=scale)
        for p in direction:
            if (mask := self.mask(p)) is not None:
                p.masked_scatter_(mask, p[mask].add_(direction[p], alpha=scale))
        _forget_casts()

    @contextmanager
    def kept(self, of: Iterable[Tensor] | None = None) -> Iterator[Saved]:
        """Inside the block weights may change; after it, however it ends, they are what they were, to the bit."""
        saved: Saved = []
        try:
            with torch.no_grad():
                saved += [(p, self._copy(p)) for p in (self.parameters if of is None else of)]
            yield saved
        finally:
            self.put_back(saved)
            for p, values in saved:
                if self.mask(p) is None:
                    self.buffers.give(p, values)

    def _copy(self, parameter: Tensor) -> Tensor:
        """Its active entries, not to change with it."""
        values = self.values(parameter, parameter)
        return values if self.mask(parameter) is not None else self.buffers.take(parameter, values).copy_(values)

    @torch.no_grad()
    def put_back(self, saved: Saved) -> None:
        """Write what `kept` handed out over the weights."""
        whole = [(local(p), values) for p, values in saved if self.mask(p) is None]
        if whole:
            foreach_copy_([p for p, _ in whole], [values for _, values in whole])
        for p, values in saved:
            if (mask := self.mask(p)) is not None:
                p.masked_scatter_(mask, values)
        _forget_casts()

    @torch.no_grad()
    def mirror(self, saved: Saved) -> None:
        """From w + ε to w - ε, or back: p ← 2w - p, in one pass. Needs what `moved` handed out, and no direction."""
        whole = [(local(p), values) for p, values in saved if self.mask(p) is None]
        if whole:
            foreach_lerp_([p for p, _ in whole], [values for _, values in whole], 2.0)
        for p, values in saved:
            if (mask := self.mask(p)) is not None:
                p.masked_scatter_(mask, 2 * values - p[mask])
        _forget_casts()

    @contextmanager
    def moved(
        self, direction: Direction, rho: float, measure: bool = False, saved: Saved | None = None, over: bool = False
    ) -> Iterator[Saved]:
        """Inside the block the weights are w + ε, ε = ρ d / ‖d‖₂; after it they are w, to the bit.

        ‖d‖₂ is over all parameters together (and over all shards); `scaling` may replace it. A direction that is empty,
        zero or not finite moves nothing.

        Args:
            direction: packed.
            rho: distance, signed.
            measure: set `cosine` and `distance` from ε and the gradients that the block leaves, for `lost_to_rounding`.
            saved: what a `kept` around this block handed out; it spares a second copy.
            over: the direction is of no use afterwards: weights may lie in its memory, and it in `buffers`.

        Yields:
            The weights that moved, with their old values, for `mirror`.
        """
        direction, norm = self._scaled(direction)
        if not (0 < norm < float("inf")) or rho == 0:
            yield []
            return
        there = {p: d for p, d in direction.items() if saved is None and self.mask(p) is None and can_exchange(p, d)}
        here = {p: d for p, d in direction.items() if p not in there}
        if measure:
            self._intended = abs(rho) * global_norm(direction) / norm
        del direction  # the forward pass does not need it: one copy of the weights is all that is held
        with (
            self.kept(list(here)) if saved is None else nullcontext(saved) as kept,
            exchanged(there, rho / norm, self.buffers, over) as old,
        ):
            self.add(here, rho / norm)
            self.took_effect = True
            here = {}
            yield [*kept, *old]
            if measure:
                self._measure([*kept, *old])

    @property
    def has_16_bits(self) -> bool:
        """Whether some weights have 16 bits, which cannot hold a small change."""
        return any(p.dtype.itemsize < 4 for p in self.parameters)

    def lost_to_rounding(self) -> str | None:
        """A warning, if 16-bit weights did not go where the last measured perturbation sent them."""
        if self.cosine is None or not self.has_16_bits or abs(self.distance - self._intended) <= 0.05 * self._intended:
            return None
        moved = f"{self.distance:.3g} instead of {self._intended:.3g}"
        return f"16-bit weights moved by {moved}: they cannot hold most changes."

    @torch.no_grad()
    def _scaled(self, direction: Direction) -> tuple[Direction, float]:
        """The direction of ε, and the norm that it is divided by."""
        if self.scaling is None:
            return direction, global_norm(direction)
        return self.scaling(direction, {p: self.values(p, p) for p in direction})

    @torch.no_grad()
    def _measure(self, saved: Saved) -> None:
        epsilon = {p: self.values(p, p) - w for p, w in saved}
        gradients = self.pack(self.gradients())
        self.distance = global_norm(epsilon)
        self.cosine = dot(epsilon, gradients) / max(self.distance * global_norm(gradients), 1e-30)


def _forget_casts() -> None:
    """In an autocast block torch holds 16-bit copies of the weights, and would go on with them as they were."""
    torch.clear_autocast_cache()


def global_norm(direction: Direction) -> float:
    """‖d‖₂ over all tensors together, in float32 or better, and over all shards of a sharded model."""
    if not direction:
        return 0.0
    tensors = [_wide(local(d)) for d in direction.values()]
    squares = [n.double().square() for n in foreach_norm(tensors, 2)]
    total = _sum_over_shards(dict(zip(direction, squares, strict=True)))
    if total == float("inf"):  # numbers above 1e19, as a GradScaler makes them, have no square in float32
        total = _sum_over_shards({p: local(d).double().square().sum() for p, d in direction.items()})
    return total**0.5


def dot(a: Direction, b: Direction) -> float:
    """⟨a, b⟩ over the parameters that both have, and over all shards."""
    return _sum_over_shards({p: (_wide(local(a[p])) * _wide(local(b[p]))).sum().double() for p in a if p in b})


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: the square of a small float16 number is zero. Complex numbers become pairs."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def _sum_over_shards(parts: Mapping[Tensor, Tensor]) -> float:
    """Sum of one number per parameter; what sharded parameters contribute is summed over their processes first."""
    by_group: dict[dist.ProcessGroup | None, list[Tensor]] = {}
    for parameter, part in parts.items():
        by_group.setdefault(_shard_group(parameter), []).append(part)
    total = 0.0
    for group, numbers in by_group.items():
        number = torch.stack([n.to(numbers[0].device) for n in numbers]).sum()
        if group is not None:
            dist.all_reduce(number, group=group)
        total += number.item()
    return total


def _shard_group(parameter: Tensor) -> dist.ProcessGroup | None:
    """The processes over which a parameter is cut into pieces, or None if each has it whole."""
    if not isinstance(parameter, DTensor):
        return None
    sharded = [axis for axis, placement in enumerate(parameter.placements) if placement.is_shard()]
    if len(sharded) > 1:
        raise NotImplementedError(f"Parameters sharded along several mesh axes ({parameter.placements}) cannot move.")
    return parameter.device_mesh.get_group(sharded[0]) if sharded else None


def shard_rank(parameter: Tensor) -> int:
    """Which piece of a sharded parameter this process holds; 0 if it has it whole."""
    group = _shard_group(parameter)
    return 0 if group is None else dist.get_rank(group)
