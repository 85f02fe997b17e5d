"""STDOConfig: the networks of a video, and the size of their routing map."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from hf_efficient.compat.transformers import unregister_config

from .experts import check_config, network_specs
from .spec import NetworkSpec


class STDOConfig(PretrainedConfig):
    """Configuration of an STDOModel: k networks overfitted to one video, and the map of which enlarges which patch.

    Args:
        backbone: "wdsr", "espcn", "edsr", "srcnn" or "vdsr".
        scale: 2, 3 or 4; of a delta also 1.5.
        num_experts: k, 1 to 256 networks.
        num_features: width of the networks: one number, or one for each network.
        num_blocks: depth, likewise.
        expansion: WDSR's width inside a block over its width outside.
        weight_dtype: how the weights are stored: "float32", "float16" or "int8" (one scale for each output channel).
        patch_width: of the routing grid, in low-resolution pixels.
        patch_height: likewise.
        routing_bytes: length of the packed routing map; 0 for one network.
        general: which general network a delta starts from (weight_dtype="delta"): the start of its file's SHA-256.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    model_type = "stdo"

    backbone: str = "wdsr"
    scale: int | float = 2
    num_experts: int = 1
    num_features: int | list[int] = 16
    num_blocks: int | list[int] = 2
    expansion: int = 4
    weight_dtype: str = "float32"
    patch_width: int = 48
    patch_height: int = 54
    routing_bytes: int = 0
    general: str = ""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_config(self)

    @property
    def networks(self) -> list[NetworkSpec]:
        """The NetworkSpec of each expert."""
        return network_specs(self)


def register() -> None:
    """Let `AutoConfig` know STDOConfig."""
    AutoConfig.register(STDOConfig.model_type, STDOConfig, exist_ok=True)


def unregister() -> None:
    """Undo `register`."""
    unregister_config(STDOConfig.model_type)


register()
