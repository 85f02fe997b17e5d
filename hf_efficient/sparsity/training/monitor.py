"""Warnings if a topology never exchanges a weight: no engine, no optimizer step, or no exchange planned."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_efficient.sparsity.topology import Topology

if TYPE_CHECKING:
    from hf_efficient.sparsity.sparse_weight import SparseWeight

PASSES_WITHOUT_ENGINE = 10  # backward passes after which a missing engine is reported
PASSES_WITHOUT_STEP = 50  # the same for an engine that sees no step; scalers skip steps, and accumulation delays them


@dataclass
class Monitor:
    """Checks at backward passes that an adapter's weights have an engine, and that the engine sees optimizer steps.

    Attributes:
        adapter: its name.
        topology: its name.
        has_engine: whether an engine exchanges the weights.
        warned: whether a warning was given; once is enough.
        passes: id of a weight -> backward passes since the engine last saw a step, which clears it.
    """

    adapter: str
    topology: str
    has_engine: bool = False
    warned: bool = False
    passes: dict[int, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """A copy has no engine, since an optimizer's hooks are not copied."""
        return {**vars(self), "has_engine": False, "warned": False, "passes": {}}

    def on_backward(self, weight: SparseWeight) -> None:
        """Called when a backward pass reaches a weight."""
        if self.warned:
            return
        passes = self.passes[id(weight)] = self.passes.get(id(weight), 0) + 1
        if not self.has_engine and passes >= PASSES_WITHOUT_ENGINE:
            self.warn(
                f"The active weights of adapter {self.adapter!r} train, but nothing exchanges them: its topology "
                f"{self.topology!r} is not attached to an optimizer. Call hf_efficient.train_sparsely(model, "
                "optimizer, total_steps) once, after the optimizer is made; a Trainer needs "
                "callbacks=[SparsityCallback()] where it was made before the model had its adapter. "
                "topology='static' with init='magnitude' or 'random' needs neither."
            )
        elif self.has_engine and passes % PASSES_WITHOUT_STEP == 0 and _gradient_was_cleared(weight):
            self.warn(
                f"{passes} backward passes of adapter {self.adapter!r}, and the optimizer that was given to "
                "train_sparsely has taken no step: another one trains the weights, or every step is skipped. The "
                "mask stays as it is. Give train_sparsely the optimizer whose step() the loop calls."
            )

    def warn(self, message: str) -> None:
        """Warn, once."""
        self.warned = True
        warnings.warn(message, stacklevel=3)


def _gradient_was_cleared(weight: SparseWeight) -> bool:
    """Whether gradients were cleared since the last pass, as after a step, not between micro-batches."""
    gradient = weight.values.grad
    if weight.sharded:
        return False  # of pieces nothing is known until a step
    return gradient is None or not bool(gradient.any())


def warn_if_no_exchange_will_come(topology: Topology, name: str, init_steps: int) -> None:
    """Warn at the start of a training that will exchange no weight, or whose initial mask is never chosen."""
    total = topology.total_steps
    if init_steps >= total:
        warnings.warn(
            f"All {total} steps of this training only collect gradients (init_steps={init_steps}): no mask is chosen "
            "from them, and no weight learns. Train longer, lower init_steps, or use init='random'.",
            stacklevel=4,
        )
    if not topology.exchanges or topology.last_exchange() > init_steps:
        return
    stop = topology.stop_fraction * total
    warnings.warn(
        f"topology={name!r} will exchange no weight in {total} steps: update_interval={topology.update_interval}, "
        f"drop_fraction={topology.drop_fraction}, stop_fraction={topology.stop_fraction} (no exchange from step "
        f"{stop:g} on). The initial mask stays. Set update_interval to a fiftieth of the steps, {max(1, total // 50)}, "
        "train longer, or set topology='static'.",
        stacklevel=4,
    )


def warn_that_no_exchange_came(steps: int, of: int | None = None) -> None:
    """Warn at the end that no weight was ever exchanged.

    Args:
        steps: optimizer steps seen.
        of: steps that the Trainer took, if known.
    """
    seen = f"{steps} optimizer steps" if of is None else f"{steps} of {of} optimizer steps"
    warnings.warn(
        f"The topology has seen {seen} and never exchanged a weight: the initial mask is unchanged. Possible reasons: "
        "skipped steps (overflowing gradients), a training that ended before its planned steps, so few weights that "
        "drop_fraction of them is less than one, or no exchange that improves the scores. report() and a smaller "
        "update_interval tell which.",
        stacklevel=3,
    )
