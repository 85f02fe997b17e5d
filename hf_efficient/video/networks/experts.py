"""The networks of a video, built, saved and loaded by their config: for the transformers model, and without it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from hf_efficient.checks import check_choice, check_whole
from hf_efficient.files import write_bytes, write_text, written_whole
from hf_efficient.reading import AGAIN, FLOATS, Stored, naming, open_tensors, read_json, shown, stored_in
from hf_efficient.video.routing import MOST_EXPERTS

from .delta import unpack_delta
from .general import find_general
from .spec import CONFIG_NAME as CONFIG_NAME
from .spec import DELTA_NAME as DELTA_NAME
from .spec import SCALES, WEIGHT_DTYPES, NetworkSpec
from .spec import WEIGHTS_NAME as WEIGHTS_NAME
from .weights import to_int8

# Instead of weights: the routing map and what `delta.pack_delta` makes. Then weight_dtype is DELTA.
DELTA, LARGEST_DELTA = "delta", 1 << 26
# Fields of a config and their defaults: everything that a player must know.
DEFAULTS: dict[str, Any] = {
    "backbone": "wdsr",
    "scale": 2,
    "num_experts": 1,
    "num_features": 16,
    "num_blocks": 2,
    "expansion": 4,
    "weight_dtype": "float32",
    "patch_width": 48,
    "patch_height": 54,
    "routing_bytes": 0,
    "general": "",
}
BOUNDS = {
    "num_experts": (1, MOST_EXPERTS),
    "patch_width": (1, 8192),
    "patch_height": (1, 8192),
    "routing_bytes": (0, 2**30),
}


def check_config(config: Any) -> None:
    """Raise ValueError for the first field of `config` that is out of range."""
    for name, (least, most) in BOUNDS.items():
        check_whole(name, getattr(config, name), least, most)
    check_choice("weight_dtype", config.weight_dtype, (*WEIGHT_DTYPES, DELTA))
    specs = network_specs(config)
    if not isinstance(config.general, str):
        raise ValueError(f"general={shown(config.general)} is out of range; expected text.")
    if config.general and config.weight_dtype != DELTA:
        raise ValueError(f"general={shown(config.general)} belongs to weight_dtype={DELTA!r} alone.")
    if specs[0].scale not in SCALES and config.weight_dtype != DELTA:
        raise ValueError(f"scale={shown(config.scale)} is that of a delta to a general network alone.")
    if config.general and any(spec != find_general(config.general).spec for spec in specs):
        raise ValueError(f"general={shown(config.general)} names a general network of another backbone, scale or size.")
    if config.weight_dtype == DELTA and not config.general and not specs[0].starts_at_zero:
        raise ValueError("general='' leaves a delta without a start; expected the name of a general network.")


def network_specs(config: Any) -> list[NetworkSpec]:
    """The NetworkSpec of each expert.

    Raises:
        ValueError: a size is out of range, or the numbers of sizes and experts differ.
    """

    def each(value: Any) -> list[Any]:
        return list(value) if isinstance(value, (list, tuple)) else [value] * config.num_experts

    widths, depths = each(config.num_features), each(config.num_blocks)
    if not len(widths) == len(depths) == config.num_experts:
        raise ValueError(
            f"num_features and num_blocks name {len(widths)} and {len(depths)} networks; "
            f"expected one number, or one for each of the {config.num_experts}."
        )
    return [
        NetworkSpec(config.backbone, config.scale, width, depth, config.expansion)
        for width, depth in zip(widths, depths, strict=True)
    ]


def build_experts(config: Any) -> nn.ModuleList:
    """New networks, with the modules that the stored weights belong to."""
    experts = nn.ModuleList(spec.build() for spec in network_specs(config))
    if config.weight_dtype == "int8":
        to_int8(experts)
    return experts


def save_experts(folder: Path, config: dict[str, Any], experts: nn.ModuleList, packed: bytes) -> None:
    """Write config.json and model.safetensors, which `load_experts` and transformers' from_pretrained read.

    Args:
        folder: the model's; it is made if absent.
        config: the fields of DEFAULTS.
        experts: the networks, as returned by `weights.as_stored`.
        packed: the routing map.
    """
    folder.mkdir(exist_ok=True)
    dtype = torch.float32 if config["weight_dtype"] == "float32" else torch.float16
    state = {
        f"experts.{name}": (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in experts.state_dict().items()
    }
    state["routing"] = torch.tensor(list(packed), dtype=torch.uint8)
    with written_whole(folder / WEIGHTS_NAME) as draft:
        save_file(state, draft, metadata={"format": "pt"})
    kind = {"architectures": ["STDOModel"], "model_type": "stdo", "dtype": str(dtype).removeprefix("torch.")}
    fields = {name: config.get(name, default) for name, default in DEFAULTS.items() if name != "general"}
    write_text(folder / CONFIG_NAME, json.dumps({**kind, **fields}, indent=2) + "\n")


def save_delta(folder: Path, config: dict[str, Any], delta: bytes, packed: bytes = b"") -> None:
    """Write config.json and delta.bin, which `load_experts` reads; what has its default value is left out.

    Args:
        folder: the model's; it is made if absent.
        config: fields of DEFAULTS.
        delta: as made by `pack_delta`.
        packed: the routing map.
    """
    folder.mkdir(exist_ok=True)
    write_bytes(folder / DELTA_NAME, packed + delta)
    write_text(folder / CONFIG_NAME, config_text(config))


def config_text(config: dict[str, Any]) -> str:
    """The short config.json of a delta."""
    fields = {name: config[name] for name, default in DEFAULTS.items() if config.get(name, default) != default}
    return json.dumps({"model_type": "stdo", **fields}, separators=(",", ":")) + "\n"


def load_config(folder: Path) -> SimpleNamespace:
    """Read and check the config of a model's folder.

    Raises:
        ValueError: it is not JSON, of another kind of model, or has a value out of range.
    """
    path = folder / CONFIG_NAME
    values = read_json(path)
    if values.get("model_type") != "stdo":
        raise ValueError(f"{path} is not the config of an STDO model: its model_type is not 'stdo'.")
    config = SimpleNamespace(**{name: values.get(name, default) for name, default in DEFAULTS.items()})
    with naming(path):
        check_config(config)
    return config


def load_experts(folder: Path, config: SimpleNamespace) -> tuple[nn.ModuleList, bytes]:
    """Load the networks of a model's folder, in float32, and the packed routing map.

    Shapes are compared with the file's header before anything is allocated.

    Raises:
        ValueError: the file is damaged, or its tensors do not match the config.
    """
    if config.weight_dtype == DELTA:
        return _restored(folder / DELTA_NAME, config)
    path = folder / WEIGHTS_NAME
    check_weights(folder, config)
    with open_tensors(path) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    routing = state.pop("routing")
    weights = {name.removeprefix("experts."): _playable(tensor, path) for name, tensor in state.items()}
    experts = build_experts(config)
    experts.load_state_dict(weights)
    return experts.eval().requires_grad_(False), routing.numpy().tobytes()


def _restored(path: Path, config: SimpleNamespace) -> tuple[nn.ModuleList, bytes]:
    """The general networks, each with its delta."""
    if path.stat().st_size > LARGEST_DELTA:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected at most {LARGEST_DELTA}.")
    data = path.read_bytes()
    if len(data) < config.routing_bytes:
        raise ValueError(f"{path} does not belong to its config: it is shorter than the map. {AGAIN}")
    specs = network_specs(config)
    nets = [find_general(config.general).load() if config.general else spec.build() for spec in specs]
    with naming(path):
        unpack_delta(data[config.routing_bytes :], nets)
    return nn.ModuleList(nets).eval().requires_grad_(False), data[: config.routing_bytes]


def check_weights(folder: Path, config: Any) -> None:
    """Compare the header of a folder's weights with its config. Nothing is allocated.

    Raises:
        ValueError: the file is damaged, or its tensors do not match the config.
    """
    path = folder / WEIGHTS_NAME
    with open_tensors(path) as file:
        different = _differences(stored_in(file), config)
    if different:
        raise ValueError(
            f"{path} does not belong to its config: tensor {shown(different[0])} is absent or different. {AGAIN}"
        )


def _differences(stored: dict[str, Stored], config: Any) -> list[str]:
    """Names of tensors on which file and config disagree."""
    if sum(spec.num_blocks for spec in network_specs(config)) > len(stored):
        return ["experts"]  # a million layers would take long even to compare
    with torch.device("meta"):
        skeleton = build_experts(config)
    expected: dict[str, tuple[tuple[int, ...], Collection[str]]] = {
        f"experts.{name}": (tuple(tensor.shape), FLOATS if tensor.is_floating_point() else ("I8",))
        for name, tensor in skeleton.state_dict().items()
    }
    expected["routing"] = ((config.routing_bytes,), ("U8",))
    agree = {
        name for name, (dtype, shape) in stored.items()
        if name in expected and shape == expected[name][0] and dtype in expected[name][1]
    }  # fmt: skip
    return sorted((stored.keys() | expected.keys()) - agree)


def _playable(tensor: torch.Tensor, path: Path) -> torch.Tensor:
    if tensor.dtype == torch.int8:
        return tensor
    if not tensor.isfinite().all():
        raise ValueError(f"{path} holds weights that are not finite numbers: it is damaged.")
    return tensor.float()
