"""What sharpness-aware training cannot work with is refused before it does harm: by type, or by behavior.

Whatever is not recognized here and still leaves the weights where they are is reported by `monitor.py`.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hf_efficient.optimizer_state import EXCHANGED, held_ids

from .perturbation import Weights

STEPS_INSIDE_BACKWARD = (
    "A layerwise or fused optimizer steps inside backward, where the weights are perturbed, and its step is lost. "
    "Use its plain form, and call step() after training_step."
)


def refuse_optimizer(optimizer: Any, weights: Weights | None = None) -> None:
    """Refuse an optimizer that cannot step after the weights have come back.

    Args:
        optimizer: an optimizer (as accelerate wraps it, too) or the class of one.
        weights: those of the model, some of which it must hold. None: not checked.

    Raises:
        ValueError: it steps inside backward, needs a closure of its own, perturbs by itself, or has other weights.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    name = inner.__name__ if isinstance(inner, type) else type(inner).__name__
    if hasattr(inner, "fused_backward"):
        raise ValueError(f"{name}: {STEPS_INSIDE_BACKWARD}")
    if hasattr(inner, "perturb") or hasattr(inner, "first_step"):
        raise ValueError(f"{name} perturbs the weights itself; give the optimizer below it, such as torch.optim.AdamW.")
    if _needs_closure(inner):
        raise ValueError(f"{name}.step() runs a closure of its own, several times, at weights that it moves itself; "
                         "take an optimizer whose step() needs none, as torch.optim.SGD or AdamW.")  # fmt: skip
    if weights is None:
        return
    held = held_ids(inner)
    if weights.parameters and not any(id(p) in held for p in weights.parameters):
        raise ValueError(
            f"The optimizer ({name}) holds none of the model's trainable weights. {STEPS_INSIDE_BACKWARD} If it was "
            "made for another copy of the model, make it of the parameters of this one."
        )


def refuse_exchanged(given: Iterable[weakref.ref[Tensor]], held: Iterable[Tensor]) -> None:
    """Refuse parameters that are no longer the model's: to move them would move nothing.

    Args:
        given: parameters that the optimizer was made with.
        held: those that it has now; after FSDP2 they may be sharded ones in place of those.

    Raises:
        ValueError: those that it was made with live on elsewhere, and it has others.
    """
    now = list(held)
    known = {id(p) for p in now}
    alive = [p for ref in given if (p := ref()) is not None]
    if alive and not any(id(p) in known for p in alive) and not any(isinstance(p, DTensor) for p in now):
        raise ValueError(f"The optimizer has other parameters than it was made with. {EXCHANGED}")


def _needs_closure(optimizer: Any) -> bool:
    try:
        parameters = list(inspect.signature(optimizer.step).parameters.values())
    except (TypeError, ValueError, AttributeError):  # made in C, or no optimizer
        return False
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return any(p.name == "closure" for p in required)


@contextmanager
def no_step_while_perturbed(weights: Weights) -> Iterator[None]:
    """Inside the block, refuse the step of any torch optimizer that holds one of the weights.

    Raises:
        ValueError: from that step, before it changes anything.
    """

    def refuse(optimizer: Optimizer, *_: Any) -> None:
        held = held_ids(optimizer)
        if any(id(p) in held for p in weights.parameters):
            name = type(optimizer).__name__
            raise ValueError(f"{name}.step() while the weights are perturbed. {STEPS_INSIDE_BACKWARD}")

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def refuse_shards(weights: Weights) -> None:
    """Refuse to ask for losses alone, in a loop that only the weights are known of.

    Raises:
        ValueError: they are sharded.
    """
    if any(isinstance(p, DTensor) for p in weights.parameters):
        raise ValueError(
            "The weights are sharded (FSDP2). Without a backward pass the model goes on with the weights that it "
            "gathered for the first loss, so that the second loss would be the first. Use ZOSAMTrainer, which cuts "
            "them again, or DDP."
        )
