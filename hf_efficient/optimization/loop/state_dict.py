"""What a method remembers, in an optimizer's state dict: written, and checked before anything is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hf_efficient.optimization.engine.memory import differences
from hf_efficient.reading import AGAIN, Fields, is_whole, shown

WHERE = 'The state "sam" of the optimizer (or checkpoint)'


def check_state(own: object, parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state under "sam", as `state_dict` writes it: the step, and directions by name and number of the parameter.

    Args:
        own: what was found.
        parameters: of the optimizer, in their order.

    Raises:
        ValueError: a type, a number or a shape is not right; nothing was loaded.
    """
    fields = Fields(own, WHERE)
    fields.whole("step")
    memory = fields.fields("memory")
    for name in memory.values:
        for number, direction in memory.fields(name).values.items():
            known = is_whole(number) and 0 <= number < len(parameters)
            fits = known and isinstance(direction, Tensor) and direction.shape == parameters[number].shape
            if not fits or not direction.is_floating_point():
                wanted = f"floats {tuple(parameters[number].shape)}" if known else f"0 to {len(parameters) - 1}"
                raise ValueError(
                    f"{WHERE}: memory: {shown(name)}: parameter {shown(number)}: {shown(direction)}, expected "
                    f"{wanted}. It is damaged or belongs to another model. {AGAIN}"
                )
    if "settings" in fields.values:
        for name, value in fields.fields("settings").values.items():
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise ValueError(f"{WHERE}: settings: {shown(name)} is {shown(value)}, expected a plain value. {AGAIN}")
    return fields.values


def saved_state(optimizer: Any) -> dict[str, Any]:
    """The step, what the method remembers, and its settings: what `check_state` reads."""
    number = {p: i for i, p in enumerate(optimizer._parameters())}
    memory = optimizer.variant.memory
    numbered = {name: {number[p]: d for p, d in direction.items()} for name, direction in memory.items()}
    return {"step": optimizer.variant.step, "memory": numbered, "settings": settings_of(optimizer)}


def load_state(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """See `PerturbingOptimizer.load_state_dict`."""
    own = check_state(state_dict.get("sam", {"step": 0, "memory": {}}), optimizer._parameters())
    optimizer.base.load_state_dict({key: value for key, value in state_dict.items() if key != "sam"})
    optimizer._link()
    parameters, memory = optimizer._parameters(), optimizer.variant.memory
    optimizer.variant.step = own["step"]
    for name, direction in own["memory"].items():
        if name in memory:
            memory[name] = {parameters[i]: d.to(parameters[i].device) for i, d in direction.items()}
    if changed := differences(own.get("settings", {}), settings_of(optimizer)):
        dropped = ", ".join(sorted(set(own["memory"]) - set(memory))) or "nothing"
        warnings.warn(f"The state was saved with {changed}. From its memory, {dropped} is dropped.", stacklevel=3)


def settings_of(optimizer: Any) -> dict[str, Any]:
    """Plain values: method, distance, and what the variant was made with."""
    own = {**optimizer.variant.settings(), "rho": optimizer.rho, "adaptive": optimizer.adaptive}
    own |= {"perturb_pruned": optimizer.perturb_pruned, "merged": optimizer.merged is not None}
    plain = {name: value for name, value in own.items() if value is None or isinstance(value, (bool, int, float))}
    return {"method": type(optimizer).__name__, **plain}
