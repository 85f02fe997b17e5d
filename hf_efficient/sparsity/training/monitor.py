"""A topology that never acts says so: nobody moves its weights, or nothing is left to be moved."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_efficient.sparsity.topology import Static, Topology

if TYPE_CHECKING:
    from hf_efficient.sparsity.sparse_weight import SparseWeight

UNATTENDED = 10  # backward passes without an engine after which it is said
UNMOVED = 50  # with an engine that sees no step: gradient scalers skip steps, and accumulation has many passes a step


@dataclass
class Attendance:
    """Whether the weights of one adapter have an engine, and whether it sees the steps that train them.

    Attributes:
        adapter: its name.
        topology: its name.
        attended: whether an engine has charge of the weights.
        said: whether the user has been told that something is amiss; once is enough.
        alone: id of a weight -> backward passes since the engine last saw a step, which clears it.
    """

    adapter: str
    topology: str
    attended: bool = False
    said: bool = False
    alone: dict[int, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, object]:
        """Of a copy: nobody has charge of it, since hooks of an optimizer are not copied."""
        return {**vars(self), "attended": False, "said": False, "alone": {}}

    def passed(self, weight: SparseWeight) -> None:
        """A backward pass has reached a weight."""
        if self.said:
            return
        alone = self.alone[id(weight)] = self.alone.get(id(weight), 0) + 1
        if not self.attended and alone >= UNATTENDED:
            self.say(
                f"The living weights of adapter {self.adapter!r} train, but nothing moves them: its topology "
                f"{self.topology!r} is not attached to an optimizer. Call hf_efficient.train_sparsely(model, "
                "optimizer, total_steps) once, after the optimizer is made; a Trainer needs "
                "callbacks=[SparsityCallback()] where it was made before the model had its adapter. "
                "topology='static' with init='magnitude' or 'random' needs neither."
            )
        elif self.attended and alone % UNMOVED == 0 and _starts_anew(weight):
            self.say(
                f"{alone} backward passes of adapter {self.adapter!r}, and the optimizer that was given to "
                "train_sparsely has taken no step: another one trains the weights, or every step is skipped. The "
                "topology stays as it is. Give train_sparsely the optimizer whose step() the loop calls."
            )

    def say(self, message: str) -> None:
        """Tell the user, once."""
        self.said = True
        warnings.warn(message, stacklevel=3)


def _starts_anew(weight: SparseWeight) -> bool:
    """Whether gradients were cleared since the last pass: it was a step's, and not one of many micro-batches."""
    gradient = weight.values.grad
    return gradient is None or not bool(gradient.any())


def warn_of_idleness(topology: Topology, name: str, init_steps: int) -> None:
    """Say at the start of a training that it will exchange no weight, or never choose the first."""
    total = topology.total_steps
    if init_steps >= total:
        warnings.warn(
            f"All {total} steps of this training only collect gradients (init_steps={init_steps}): no weight is chosen "
            "by them, and none learns. Train longer, lower init_steps, or take init='random'.",
            stacklevel=4,
        )
    if isinstance(topology, Static) or topology.last_exchange() > init_steps:
        return
    rests = topology.stop * total
    warnings.warn(
        f"topology={name!r} will exchange no weight in {total} steps: update_interval={topology.interval}, "
        f"drop_fraction={topology.share}, stop_fraction={topology.stop} (it rests from step {rests:g} on). The mask "
        f"stays that of the start. Set update_interval to a fiftieth of the steps, {max(1, total // 50)}, train "
        "longer, or say topology='static'.",
        stacklevel=4,
    )


def warn_of_no_exchange(steps: int, of: int | None = None) -> None:
    """Say at the end that no weight was ever exchanged.

    Args:
        steps: optimizer steps seen.
        of: steps that the Trainer took, where it is known.
    """
    seen = f"{steps} optimizer steps" if of is None else f"{steps} of {of} optimizer steps"
    warnings.warn(
        f"The topology has seen {seen} and never exchanged a weight: the mask is that of the start. Skipped steps "
        "(overflowing gradients), a training that ended before its planned steps, too few weights for a share of them "
        "to be one, or no exchange that seemed worth it can be why; report() and a smaller update_interval tell which.",
        stacklevel=3,
    )
