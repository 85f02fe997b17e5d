"""What a method remembers, in a Trainer's checkpoint: `sam_memory.safetensors`, with the arguments it had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from hf_efficient.files import written_whole
from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.optimization.engine.memory import differences
from hf_efficient.optimization.engine.variant import Memory
from hf_efficient.reading import AGAIN, FLOATS, naming, open_tensors, shown, stored_in
from hf_efficient.shards import local

NAME = "sam_memory"
_SETTINGS = "sam_args"  # key of the file's metadata
_WITHOUT_EFFECT = ("diagnostics_steps", "upcast")  # on what a step does


def path_in(folder: str | Path, model: nn.Module, rank: int) -> Path:
    """Its path in a checkpoint's folder: one file, or one per process if the model is sharded."""
    return Path(folder) / (f"{NAME}_{rank}.safetensors" if is_sharded(model) else f"{NAME}.safetensors")


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has only a part of the weights."""
    return any(local(p) is not p for p in model.parameters())


def save(path: Path, model: nn.Module, memory: Memory, arguments: SAMArguments) -> None:
    """Write the directions that are remembered, by name of direction and parameter, whole or not at all."""
    tensors = {
        f"{name}.{parameter}": local(direction[p]).detach().contiguous()
        for name, direction in memory.items()
        for parameter, p in model.named_parameters()
        if p in direction and local(direction[p]).shape == local(p).shape
    }
    with written_whole(path) as draft:
        save_file(tensors, draft, metadata={_SETTINGS: json.dumps(_settings(arguments))})


def load(path: Path, model: nn.Module, memory: Memory, arguments: SAMArguments) -> str | None:
    """Fill `memory` with what was remembered.

    Returns:
        A warning, if the run before had another method or other settings, or if there is no such file although the
        method remembers something; else None.

    Raises:
        ValueError: the file is damaged, or its tensors are not those of this model.
    """
    if not path.exists():
        return f"{path} not found: the first step is not perturbed." if memory and arguments.rho > 0 else None
    parameters = dict(model.named_parameters())
    dropped = set()
    with open_tensors(path) as file, naming(path):
        changed = differences(_saved_settings(file.metadata()), _settings(arguments))
        for key, stored in stored_in(file).items():
            name, _, parameter = key.partition(".")
            if name not in memory:
                dropped.add(name)
            elif parameter in parameters:
                p = parameters[parameter]
                if stored.shape != tuple(local(p).shape) or stored.dtype not in FLOATS:
                    raise ValueError(
                        f"{key!r} is {stored.dtype} {shown(stored.shape)}, expected floating point of shape "
                        f"{tuple(local(p).shape)}. {AGAIN}"
                    )
                memory[name][p] = file.get_tensor(key).to(p.device)
    if not changed:
        return None
    lost = f" What it remembered ({', '.join(sorted(dropped))}) is dropped." if dropped else ""
    lacking = [name for name, direction in memory.items() if not direction]
    return f"{path.parent} was trained with {changed}.{lost}" + (
        f" There is no {', '.join(lacking)} to continue from: {arguments.method} starts again." if lacking else ""
    )


def _settings(arguments: SAMArguments) -> dict[str, Any]:
    return {name: value for name, value in arguments.to_dict().items() if name not in _WITHOUT_EFFECT}


def _saved_settings(metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        settings = json.loads((metadata or {}).get(_SETTINGS, "{}"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"its {_SETTINGS} are not a JSON object. {AGAIN}")
    return settings
