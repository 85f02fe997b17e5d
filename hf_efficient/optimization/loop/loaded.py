"""What an optimizer's state dict brings of a variant, looked at before anything is taken of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

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
                    f"{wanted}. It is damaged or of another model. {AGAIN}"
                )
    if "settings" in fields.values:
        for name, value in fields.fields("settings").values.items():
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise ValueError(f"{WHERE}: settings: {shown(name)} is {shown(value)}, expected a plain value. {AGAIN}")
    return fields.values
