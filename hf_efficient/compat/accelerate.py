"""accelerate: the undocumented names that this package reads, as read in 1.15.0."""

from __future__ import annotations

import types
from typing import Any

#: "module:name" -> parameters, of what is called.
CALLED = {
    "accelerate:Accelerator.no_sync": ("self", "model"),
    "accelerate:Accelerator.reduce": ("self", "tensor", "reduction", "scale"),
    "accelerate:Accelerator.wait_for_everyone": ("self",),
}
#: "module:name" of what is read.
READ = (
    "accelerate:Accelerator.sync_gradients",
    "accelerate.utils:FullyShardedDataParallelPlugin.fsdp_version",
)
#: "module:name" -> words in its source, where a name exists on instances alone.
IN_SOURCE = {
    "accelerate.hooks:add_hook_to_module": ("_old_forward", "_hf_hook"),
    "accelerate.hooks:AlignDevicesHook": ("self.execution_device",),
    "accelerate.hooks:SequentialHook": ("self.hooks",),
    "accelerate:Accelerator": ("self.scaler",),
}


def execution_device(module: Any) -> Any:
    """The device to which accelerate brings a module's weights while it runs, as `torch.device` takes it, or None.

    Between calls weights that are offloaded lie on the meta device.
    """
    hook = vars(module).get("_hf_hook")
    devices = (getattr(one, "execution_device", None) for one in getattr(hook, "hooks", (hook,)))
    return next((device for device in devices if device is not None), None)


def refresh_held_forward(module: Any, new: type) -> None:
    """After a module's class has changed to `new`, let accelerate's hook call its forward.

    `add_hook_to_module` (device maps, offloading) holds the bound forward as `module._old_forward`, and has no function
    that reads it again.
    """
    if "_old_forward" in vars(module):
        module._old_forward = types.MethodType(new.forward, module)  # type: ignore[attr-defined]
