"""The device on which networks run."""

from __future__ import annotations

import torch


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: the device is not available here, or there is no such device.
    """
    if name == "auto":
        return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise NotImplementedError("it holds no values")
        torch.empty(0, device=device)  # a driver is looked for when the first tensor is made
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = torch.accelerator.current_accelerator(check_available=True)
        known = "'cpu'" if there is None else f"'cpu', {there.type!r}"
        raise ValueError(f"device={str(name)!r} is not available here; expected one of {known}, 'auto'.") from error
    return device
