"""The engine of dynamic sparse training: sits behind an optimizer and moves weights when its topology says so."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet, ref

import torch
import torch.distributed as dist
from torch import Tensor

from hf_efficient import optimizer_state
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.storage import mask_encoding
from hf_efficient.sparsity.topology import Topology
from hf_efficient.sparsity.topology.topology import by_part

from .distributed import compare_masks, refuse_shards
from .monitor import warn_of_no_exchange
from .state_checks import check_state, fingerprint

#: All engines there are. Of one optimizer's weights only one may be in charge.
ENGINES: WeakSet[SparseTraining] = WeakSet()
KEY = "sparsity"  # of the optimizer's first parameter group, where all is kept that a resumed training needs


class SparseTraining:
    """Moves the living weights of a model while any optimizer trains them.

    Call `step()` after every optimizer step, before gradients are cleared. All it remembers lies in the optimizer's
    first parameter group, so that an optimizer's state dict, saved and loaded by whoever does that, brings training
    back bit for bit, together with the model's own tensors.

    Args:
        weights: name -> weight, of one model.
        optimizer: trains their `values`.
        topology: who lives, who dies.
        first_living: "gradient" or "snip": the first `init_steps` steps leave the weights as they were and choose those
            that live by |dL/dw| or |w dL/dw|; anything else: they live already.
        init_steps: see there.
        global_budget: whether the weights share one budget; otherwise each keeps its own.
        bases: name -> the dense tensor the model started from (needed for "snip", and to start values from).
        additive: whether the values add to the bases.
        seed: of chance; the same on all ranks.
        model_weights: of the whole model, for the report; None takes the places of `weights`.

    Raises:
        ValueError: values are sharded (FSDP), or they would change size under DDP; or weights shall move and what the
            optimizer remembers of them is not known; or the optimizer brings a state of sparse training that is damaged
            or of another model.
    """

    def __init__(
        self,
        weights: Mapping[str, SparseWeight],
        optimizer: torch.optim.Optimizer,
        topology: Topology,
        *,
        first_living: str = "random",
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
        self.first_living = first_living
        self.init_steps = init_steps if first_living in ("gradient", "snip") else 0
        self.bases = dict(bases or {})
        self.additive = additive
        self.groups = [list(self.weights)] if global_budget else [[name] for name in self.weights]
        self.seed = seed
        self.model_weights = model_weights or sum(weight.numel for weight in self.weights.values())
        self.last_exchange = topology.last_exchange()
        if self.last_exchange or self.init_steps:
            optimizer_state.check(self.optimizer, [weight.values for weight in self.weights.values()])
        self.ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        resizes = global_budget or type(topology).initial_count is not Topology.initial_count
        refuse_shards(self.weights, self.ranks, resizes)
        self.began = time.perf_counter()
        self.seconds = 0.0  # of mask work
        self.state: dict[str, Any] = {}
        self._raw: dict[str, Tensor] = {}
        mine = ref(self)
        self.handles: list[Any] = [self.optimizer.register_step_pre_hook(lambda *_: _before_step(mine()))]
        self._listens = True  # what a forgotten training left in the weights is cleared
        self._follow()
        self._listen()
        self._agree()
        self._attendances = {id(a): a for w in self.weights.values() if (a := w.attendance) is not None}.values()
        for attendance in self._attendances:
            attendance.attended = True
        ENGINES.add(self)

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
            "model and the optimizer's state dict, which holds all it remembers, and call train_sparsely for them."
        )

    def detach(self) -> None:
        """Leave the optimizer alone from now on."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        ENGINES.discard(self)

    @torch.no_grad()
    def step(self) -> None:
        """Read what gradients tell, and move weights if it is time. Costs next to nothing at other steps."""
        began = time.perf_counter()
        self._follow()
        self.state["steps"] += 1
        wanted = self._wanted(self.steps)
        if wanted and not self._gradients_are_finite():
            self.state["steps"] -= 1  # the step overflowed: it does not count
        elif self.steps <= self.init_steps:
            self._choose_first()
        else:
            if wanted:
                self._observe()
            if self.topology.due(self.steps):
                self._exchange()
        self._listen()
        for attendance in self._attendances:
            attendance.alone.clear()
        if self.steps == self.last_exchange and not self.state["updates"]:
            warn_of_no_exchange(self.steps)
        self.seconds += time.perf_counter() - began

    def report(self) -> dict[str, float]:
        """What to log.

        sparsity of the targeted layers; model_sparsity, dead places as a share of all weights of the model (of a delta:
        those that it leaves as they are); mask_updates; share_changed and mask_iou of the last of them; itop_rate, the
        share of places that ever lived; mask_time_share, of the time since training began.
        """
        alive = sum(len(weight.indices) for weight in self.weights.values())
        places = sum(weight.numel for weight in self.weights.values())
        ever = sum(int(mask_encoding.unpack(self.state["ever"][n], w.numel).sum()) for n, w in self.weights.items())
        collecting = sum(weight.seconds for weight in self.weights.values())
        moved = self.state["moved"]
        return {
            "sparsity": 1 - alive / places,
            "model_sparsity": (self.model_weights - alive if self.additive else places - alive) / self.model_weights,
            "mask_updates": self.state["updates"],
            "share_changed": moved / alive,
            "mask_iou": (alive - moved) / (alive + moved),
            "itop_rate": ever / places,
            "mask_time_share": (self.seconds + collecting) / (time.perf_counter() - self.began),
        }

    def _follow(self) -> None:
        """Take up the state that lies in the optimizer: an empty one, or one that was loaded."""
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
                memories[name], ever[name] = weight.memory, mask_encoding.pack(weight.alive())
            device = weight.indices.device
            weight.memory = memories[name] = {key: value.to(device) for key, value in memories[name].items()}
            ever[name] = ever[name].to(device)

    def _wanted(self, step: int) -> bool:
        return step <= self.init_steps or self.topology.reads_gradient(step)

    def _listen(self) -> None:
        following = self.steps + 1
        wanted, probing = self._wanted(following), following <= self.init_steps
        if not wanted and not self._listens:
            return
        self._listens = wanted
        for weight in self.weights.values():
            weight.gradient = None
            weight.collecting, weight.probing = wanted, probing
            weight.watched = self.topology.watched(weight, following) if wanted and not probing else None

    def _gradients_are_finite(self) -> bool:
        """Bring dL/dz to the scale of the optimizer's gradients and to all ranks; False where a step overflowed."""
        finite = True
        for name, weight in self.weights.items():
            if weight.gradient is None:  # the layer had no part in this step
                count = weight.numel if weight.watched is None else len(weight.watched)
                weight.gradient = torch.zeros(count, device=weight.indices.device)
            if self.ranks > 1:
                dist.all_reduce(weight.gradient)
                weight.gradient /= self.ranks
            seen = self._raw.pop(name, weight.values.grad)
            if seen is not None and not weight.probing:
                # loss scaling and clipping have touched the optimizer's gradients, not ours
                ours = weight.living_gradient()
                scale = (seen.float() @ ours) / (ours @ ours)
                weight.gradient *= torch.where(scale.isfinite() & (scale > 0), scale, torch.ones_like(scale))
            finite = finite and bool(weight.gradient.isfinite().all())
        return finite

    def _observe(self) -> None:
        chance = self._chance(1)
        for weight in self.weights.values():
            self.topology.observe(
                weight, self.steps, optimizer_state.effective_lr(self.optimizer, weight.values), chance
            )

    def _choose_first(self) -> None:
        for weight in self.weights.values():
            assert weight.gradient is not None
            total = weight.memory.setdefault("first", torch.zeros_like(weight.gradient))
            total += weight.gradient
        if self.steps < self.init_steps:
            return
        for group in self.groups:
            scores = []
            for name in group:
                score = self.weights[name].memory.pop("first").abs()
                base = self.bases[name].detach().flatten().float() if self.first_living == "snip" else None
                score = score if base is None else score * base.abs()
                score[score.argmax()] = torch.inf  # no layer without a weight
                scores.append(score)
            budget = sum(len(self.weights[name].indices) for name in group)
            best = torch.cat(scores).topk(budget).indices.sort().values
            for name, places in zip(group, by_part(best, [len(score) for score in scores]), strict=True):
                weight = self.weights[name]
                if len(places) != len(weight.indices):
                    optimizer_state.resize(self.optimizer, weight.values, places[:0], len(places))
                    weight.resize(places[:0], places)
                start = None if self.additive else self.bases[name].detach().flatten()[places]
                weight.select(places, start)
                optimizer_state.forget(self.optimizer, weight.values, torch.arange(len(places), device=places.device))
                self.state["ever"][name] = mask_encoding.pack(weight.alive())
        self._agree()

    def _exchange(self) -> None:
        generator = self._chance(0)
        total = 0
        for group in self.groups:
            weights = [self.weights[name] for name in group]
            plan = self.topology.plan(weights, self.steps, generator)
            for name, weight, (slots, places) in zip(group, weights, plan, strict=True):
                total += max(len(slots), len(places))
                self._move(weight, slots, places)
                mask_encoding.add(self.state["ever"][name], places)
                self.topology.settled(weight)
        if total:
            self.state["moved"] = total
            self.state["updates"] += 1
            self._agree()

    def _agree(self) -> None:
        """All ranks have the same places, and so shall have who brings model and optimizer back."""
        self.state["places"] = {name: fingerprint(weight.indices) for name, weight in self.weights.items()}
        if self.ranks > 1:
            compare_masks(self.weights, self.steps)

    def _chance(self, purpose: int) -> torch.Generator:
        """The same on all ranks and after a resume."""
        return torch.Generator().manual_seed((self.seed * 2**31 + self.steps) * 2 + purpose)

    def _move(self, weight: SparseWeight, slots: Tensor, places: Tensor) -> None:
        start = self.topology.moved(weight, slots, places)
        if len(slots) == len(places):
            weight.swap(slots, places, start)
            optimizer_state.forget(self.optimizer, weight.values, slots)
            return
        stay = torch.ones(len(weight.indices), dtype=torch.bool, device=slots.device).index_fill_(0, slots, False)
        kept = stay.nonzero().flatten()
        optimizer_state.resize(self.optimizer, weight.values, kept, len(places))
        weight.resize(kept, places)


@torch.no_grad()
def _before_step(training: SparseTraining | None) -> None:
    """Keep the gradients of a step whose gradients are wanted: some optimizers overwrite them while they step."""
    if training is None or not training._listens:
        return
    scale = getattr(training.optimizer, "grad_scale", None)  # of a scaler, where the optimizer itself divides by it
    for name, weight in training.weights.items():
        if weight.values.grad is not None and not weight.probing:
            training._raw[name] = weight.values.grad.clone() if scale is None else weight.values.grad / scale
