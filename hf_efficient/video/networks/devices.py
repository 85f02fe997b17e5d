"""Where networks run."""

from __future__ import annotations

import torch

from hf_efficient.video.settings import AUTO


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name; of "auto" the accelerator where there is one, else the CPU.

    Raises:
        ValueError: there is no such device, here or at all.
    """
    if name == AUTO:
        return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise NotImplementedError("it holds no values")
        torch.empty(0, device=device)  # a driver is looked for when the first tensor is made
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = torch.accelerator.current_accelerator(check_available=True)
        known = "'cpu'" if there is None else f"'cpu', {there.type!r}"
        raise ValueError(f"device={str(name)!r} is not to be had here; there are {known} (or 'auto').") from error
    return device
