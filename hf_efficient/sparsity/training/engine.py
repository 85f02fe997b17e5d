"""The engine of dynamic sparse training: exchanges weights after optimizer steps, as the topology says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet, ref

import torch
import torch.distributed as dist
from torch import Tensor

from hf_efficient import optimizer_state
from hf_efficient.shards import whole
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.storage import mask_encoding
from hf_efficient.sparsity.topology import Topology

from . import initial_mask
from .distributed import check_shards, compare_masks
from .monitor import warn_that_no_exchange_came
from .state_checks import check_state, fingerprint

#: All engines in use. Each optimizer has at most one.
ENGINES: WeakSet[SparseTraining] = WeakSet()
KEY = "sparsity"  # key of the optimizer's first parameter group, where the state for resuming is kept


class SparseTraining:
    """Exchanges a model's active weights while any optimizer trains them.

    Call `step()` after every optimizer step, before gradients are cleared. The engine's state lies in the optimizer's
    first parameter group. So the optimizer's state dict and the model's own tensors are all that a training needs to
    resume bit for bit.

    Args:
        weights: name -> weight, of one model.
        optimizer: trains their `values`.
        topology: which weights to drop and to grow, and when.
        init: "gradient" or "snip": the first `init_steps` steps leave the weights unchanged and choose the active ones
            by |dL/dw| or |w dL/dw|. Anything else: the mask that the weights have.
        init_steps: see `init`.
        global_budget: whether the weights share one budget; otherwise each keeps its own.
        bases: name -> the dense tensor that the model started from (read by "snip", and for first values).
        additive: whether the values add to the bases.
        seed: of randomness; the same on all ranks.
        model_weights: number of weights of the whole model, for the report; None: the entries of `weights`.

    Raises:
        ValueError: values are cut otherwise than by FSDP2, or would change size on several ranks; or the optimizer's
            state is not known, or holds one of sparse training that is damaged or of another model.
    """

    def __init__(
        self,
        weights: Mapping[str, SparseWeight],
        optimizer: torch.optim.Optimizer,
        topology: Topology,
        *,
        init: str = "random",
        init_steps: int = 1,
        global_budget: bool = False,
        bases: Mapping[str, Tensor] | None = None,
        additive: bool = False,
        seed: int = 0,
        model_weights: int | None = None,
    ) -> None:
        self.weights = dict(weights)
        self.optimizer: torch.optim.Optimizer = optimizer_state.innermost(optimizer)
        self.topology = topology
        self.init = init
        self.init_steps = init_steps if init in ("gradient", "snip") else 0
        self.bases = bases or {}
        self.additive = additive
        self.groups = [list(self.weights)] if global_budget else [[name] for name in self.weights]
        self.seed = seed
        self.model_weights = model_weights or sum(weight.numel for weight in self.weights.values())
        self.last_exchange = topology.last_exchange()
        if self.last_exchange or self.init_steps:
            optimizer_state.check(self.optimizer, [weight.values for weight in self.weights.values()])
        self.ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        resizes = global_budget or topology.resizes
        check_shards(self.weights, self.ranks, resizes)
        self.began, self.seconds = time.perf_counter(), 0.0  # seconds of mask work
        self.state: dict[str, Any] = {}
        self._raw: dict[str, Tensor] = {}
        mine = ref(self)
        self.handles: list[Any] = [self.optimizer.register_step_pre_hook(lambda *_: _before_step(mine()))]
        self._collecting = True  # so that what an earlier training left in the weights is cleared
        self._adopt_state()
        self._set_collecting()
        self._record_indices()
        self._monitors = {id(a): a for w in self.weights.values() if (a := w.monitor) is not None}.values()
        for monitor in self._monitors:
            monitor.has_engine = True
        ENGINES.add(self)

    def __repr__(self) -> str:
        active = sum(len(weight.indices) for weight in self.weights.values())
        entries = sum(weight.numel for weight in self.weights.values())
        return f"SparseTraining({self.topology!r}, {active} of {entries} active, step {self.steps})"

    @property
    def steps(self) -> int:
        """Optimizer steps seen."""
        return int(self.state["steps"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refused: a copy would belong to no optimizer.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "An engine of sparse training cannot be copied or pickled: it belongs to its optimizer. Copy or save the "
            "model and the optimizer's state dict, which holds the engine's state, and call train_sparsely for them."
        )

    def detach(self) -> None:
        """Remove the engine from its optimizer."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        ENGINES.discard(self)

    @torch.no_grad()
    def step(self) -> None:
        """Read gradients and exchange weights when the topology asks for it; cheap at all other steps."""
        began = time.perf_counter()
        self._adopt_state()
        self.state["steps"] += 1
        wanted = self._needs_gradient(self.steps)
        if wanted and not self._gradients_are_finite():
            self.state["steps"] -= 1  # the step overflowed: it does not count
        elif self.steps <= self.init_steps:
            self._choose_initial()
        else:
            self._lend_starts()
            if wanted:
                self._observe()
            if self.topology.due(self.steps):
                self._exchange()
        self._set_collecting()
        for monitor in self._monitors:
            monitor.passes.clear()
        if self.steps == self.last_exchange and not self.state["updates"]:
            warn_that_no_exchange_came(self.steps)
        self.seconds += time.perf_counter() - began

    def report(self) -> dict[str, float]:
        """Metrics to log.

        sparsity: inactive share of the targeted layers. model_sparsity: the same for all weights of the model (for a
        delta: the share that it leaves unchanged). mask_updates: exchanges so far. share_changed, mask_iou: of the last
        one. itop_rate: share of entries that were ever active. mask_time_share: of the time since training began.
        """
        active = sum(len(weight.indices) for weight in self.weights.values())
        entries = sum(weight.numel for weight in self.weights.values())
        ever = sum(int(mask_encoding.unpack(self.state["ever"][n], w.numel).sum()) for n, w in self.weights.items())
        collecting = sum(weight.seconds for weight in self.weights.values())
        moved = self.state["moved"]
        return {
            "sparsity": 1 - active / entries,
            "model_sparsity": (self.model_weights - active if self.additive else entries - active) / self.model_weights,
            "mask_updates": self.state["updates"],
            "share_changed": moved / active,
            "mask_iou": (active - moved) / (active + moved),
            "itop_rate": ever / entries,
            "mask_time_share": (self.seconds + collecting) / (time.perf_counter() - self.began),
        }

    def _adopt_state(self) -> None:
        """Adopt the state that lies in the optimizer, empty or loaded."""
        group = self.optimizer.param_groups[0]
        if group.get(KEY) is self.state and self.state:
            return
        state = group.setdefault(KEY, {"steps": 0, "updates": 0, "moved": 0, "ever": {}, "memory": {}})
        check_state(state, self.weights, self.topology)
        self.state = state
        memories, ever = self.state["memory"], self.state["ever"]
        for name, weight in self.weights.items():
            if name not in memories:
                self.topology.begin(weight)
                memories[name], ever[name] = weight.memory, mask_encoding.pack(weight.mask())
            device = weight.indices.device
            weight.memory = memories[name] = {key: value.to(device) for key, value in memories[name].items()}
            ever[name] = ever[name].to(device)

    def _needs_gradient(self, step: int) -> bool:
        return step <= self.init_steps or self.topology.reads_gradient(step)

    def _set_collecting(self) -> None:
        following = self.steps + 1
        wanted, probing = self._needs_gradient(following), following <= self.init_steps
        if not wanted and not self._collecting:
            return
        self._collecting = wanted
        for weight in self.weights.values():
            weight.gradient = weight.start = None
            weight.collecting, weight.probing = wanted, probing
            reads_some = wanted and not probing
            weight.gradient_indices = self.topology.gradient_indices(weight, following) if reads_some else None

    def _gradients_are_finite(self) -> bool:
        """Average dL/dz over ranks, scale it as the optimizer's gradients; False if the step overflowed."""
        finite = True
        for name, weight in self.weights.items():
            if weight.gradient is None:  # the layer was not used in this step
                count = weight.numel if weight.gradient_indices is None else len(weight.gradient_indices)
                weight.gradient = torch.zeros(count, device=weight.indices.device)
            if self.ranks > 1:
                dist.all_reduce(weight.gradient)
                weight.gradient /= self.ranks
            seen = self._raw.pop(name, weight.values.grad)
            if seen is not None and not weight.probing:
                # loss scaling and clipping have changed the optimizer's gradients, not ours
                ours = weight.active_gradient()
                scale = (whole(seen).float() @ ours) / (ours @ ours)
                weight.gradient *= torch.where(scale.isfinite() & (scale > 0), scale, torch.ones_like(scale))
            finite = finite and bool(weight.gradient.isfinite().all())
        return finite

    def _lend_starts(self) -> None:
        """Lend topologies what weights were before training, at the steps at which they may read it."""
        if self.topology.reads_start and not self.additive and self.init != "random":  # else they were zero
            for name, weight in self.weights.items():
                if self.topology.due(self.steps) or (weight.collecting and weight.gradient_indices is None):
                    weight.start = self.bases[name].detach().flatten()

    def _observe(self) -> None:
        for weight in self.weights.values():
            self.topology.observe(weight, self.steps, optimizer_state.pace(self.optimizer, weight.values))

    def _choose_initial(self) -> None:
        for weight in self.weights.values():
            assert weight.gradient is not None
            total = weight.memory.setdefault("initial_gradient", torch.zeros_like(weight.gradient))
            total += weight.gradient
        if self.steps < self.init_steps:
            return
        for group in self.groups:
            bases = [self.bases[name] if self.init == "snip" else None for name in group]
            gradients = [self.weights[name].memory.pop("initial_gradient") for name in group]
            scores = [initial_mask.scores(*pair) for pair in zip(gradients, bases, strict=True)]
            weights = [self.weights[name] for name in group]
            for name, weight, indices in zip(group, weights, initial_mask.chosen(weights, scores), strict=True):
                if len(indices) != len(weight.indices):
                    optimizer_state.resize(self.optimizer, weight.values, indices[:0], len(indices))
                    weight.resize(indices[:0], indices)
                start = None if self.additive else self.bases[name].detach().flatten()[indices]
                weight.select(indices, start)
                optimizer_state.forget(self.optimizer, weight.values, torch.arange(len(indices), device=indices.device))
                self.state["ever"][name] = mask_encoding.pack(weight.mask())
        self._record_indices()

    def _exchange(self) -> None:
        generator = torch.Generator().manual_seed((self.seed * 2**31 + self.steps) * 2)  # on all ranks, after a resume
        total = 0
        for group in self.groups:
            weights = [self.weights[name] for name in group]
            plan = self.topology.plan(weights, self.steps, generator)
            for name, weight, (slots, indices) in zip(group, weights, plan, strict=True):
                total += max(len(slots), len(indices))
                self._move(weight, slots, indices)
                mask_encoding.add(self.state["ever"][name], indices)
                self.topology.after_exchange(weight)
                weight.start = None  # not all topologies read gradients, after which it is taken back
        if total:
            self.state["moved"] = total
            self.state["updates"] += 1
            self._record_indices()

    def _record_indices(self) -> None:
        """Note fingerprints of the indices, which model and optimizer must share when loaded; compare all ranks."""
        self.state["indices"] = {name: fingerprint(weight.indices) for name, weight in self.weights.items()}
        if self.ranks > 1:
            compare_masks(self.weights, self.steps)

    def _move(self, weight: SparseWeight, slots: Tensor, indices: Tensor) -> None:
        start = self.topology.before_exchange(weight, slots, indices)
        if len(slots) == len(indices):
            weight.swap(slots, indices, start)
            optimizer_state.forget(self.optimizer, weight.values, slots)
            return
        stay = torch.ones(len(weight.indices), dtype=torch.bool, device=slots.device).index_fill_(0, slots, False)
        kept = stay.nonzero().flatten()
        optimizer_state.resize(self.optimizer, weight.values, kept, len(indices))
        weight.resize(kept, indices, start)


@torch.no_grad()
def _before_step(training: SparseTraining | None) -> None:
    """Keep the gradients of a step that reads them: some optimizers overwrite them while they step."""
    if training is None or not training._collecting:
        return
    scale = getattr(training.optimizer, "grad_scale", None)  # of a scaler, where the optimizer itself unscales
    for name, weight in training.weights.items():
        if weight.values.grad is not None and not weight.probing:
            training._raw[name] = whole(weight.values.grad) / (1 if scale is None else scale)
