"""NetworkSpec: what builds one network. Importing it does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_efficient.checks import check_whole
from hf_efficient.methods import BACKBONES
from hf_efficient.reading import shown

if TYPE_CHECKING:
    from .backbones.backbone import Backbone

CONFIG_NAME, WEIGHTS_NAME, DELTA_NAME = "config.json", "model.safetensors", "delta.bin"
SCALES = (2, 3, 4)
GENERAL_WIDTHS = (8,)  # of the general networks that the package has, see `general.py`
WEIGHT_DTYPES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that builds one network.

    Args:
        backbone: a name of `hf_efficient.methods.BACKBONES`.
        scale: 2, 3 or 4.
        num_features: width, 1 to 1024.
        num_blocks: depth, 1 to 256: residual blocks of WDSR and EDSR, inner layers of the others.
        expansion: WDSR's width inside a block over its width outside, 1 to 16; the others have none.

    Raises:
        ValueError: a field is out of range.
    """

    backbone: str = "wdsr"
    scale: int = 2
    num_features: int = 16
    num_blocks: int = 2
    expansion: int = 4

    def __post_init__(self) -> None:
        BACKBONES.row(self.backbone)
        if isinstance(self.scale, bool) or not isinstance(self.scale, int) or self.scale not in SCALES:
            raise ValueError(f"scale={shown(self.scale)} is not supported; expected 2, 3 or 4.")
        for name, most in (("num_features", 1024), ("num_blocks", 256), ("expansion", 16)):
            check_whole(name, getattr(self, name), 1, most)

    def build(self) -> Backbone:
        """A new network, randomly initialized as published, without weight norm."""
        network: Backbone = self._backbone(self.scale, self.num_features, self.num_blocks, self.expansion)
        return network

    @property
    def receptive_radius(self) -> int:
        """Low-resolution pixels around a pixel that its enlargement depends on, on each side."""
        return self._backbone.receptive_radius(self.scale, self.num_blocks)

    @property
    def largest_activation(self) -> int:
        """Numbers that the widest layer makes of one low-resolution pixel."""
        return self._backbone.largest_activation(self.scale, self.num_features, self.expansion)

    @property
    def starts_at_zero(self) -> bool:
        """Whether a new network corrects nothing, so that a delta needs no general network."""
        return self._backbone.starts_at_zero

    @property
    def _backbone(self) -> type[Backbone]:
        backbone: type[Backbone] = BACKBONES.row(self.backbone).implementation
        return backbone
