"""NetworkSpec: what builds one network. Importing it does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_efficient.checks import check_whole
from hf_efficient.methods import BACKBONES
from hf_efficient.reading import shown

if TYPE_CHECKING:
    from .backbones.backbone import Backbone

CONFIG_NAME, WEIGHTS_NAME, DELTA_NAME = "config.json", "model.safetensors", "delta.bin"
SCALES: tuple[float, ...] = (2, 3, 4)
GENERAL_SCALES = (1.5, *SCALES)  # of networks on luma alone
#: Widths of the general networks that the package has, see `general.py`. At x1.5 a layer computes a fourth.
GENERAL_WIDTHS: dict[float, tuple[int, ...]] = {1.5: (16,), 2: (8,), 3: (8,), 4: (8,)}
WEIGHT_DTYPES = ("float32", "float16", "int8")


def sub_pixels(scale: float) -> tuple[int, int]:
    """Sides of the smallest square of small pixels that is enlarged to whole ones, and of these: (1, s), or (2, 3)."""
    out, block = float(scale).as_integer_ratio()
    return block, out


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that builds one network.

    Args:
        backbone: a name of `hf_efficient.methods.BACKBONES`.
        scale: 2, 3 or 4; of a network on luma also 1.5.
        num_features: width, 1 to 1024.
        num_blocks: depth, 1 to 256: residual blocks of WDSR and EDSR, inner layers of the others.
        expansion: WDSR's width inside a block over its width outside, 1 to 16; the others have none.

    Raises:
        ValueError: a field is out of range.
    """

    backbone: str = "wdsr"
    scale: float = 2
    num_features: int = 16
    num_blocks: int = 2
    expansion: int = 4

    def __post_init__(self) -> None:
        BACKBONES.row(self.backbone)
        scales = GENERAL_SCALES if self._backbone.on_luma else SCALES
        if not any(type(self.scale) is type(known) and self.scale == known for known in scales):  # 2.0 is no size
            known = ", ".join(map(str, scales[:-1]))
            raise ValueError(f"scale={shown(self.scale)} is not supported; expected {known} or {scales[-1]}.")
        for name, most in (("num_features", 1024), ("num_blocks", 256), ("expansion", 16)):
            check_whole(name, getattr(self, name), 1, most)

    def build(self) -> Backbone:
        """A new network, randomly initialized as published, without weight norm."""
        network: Backbone = self._backbone(self.scale, self.num_features, self.num_blocks, self.expansion)
        return network

    def enlarged(self, side: Any) -> Any:
        """Pixels of a side, or of anything on the grid, at high resolution: a whole number; symbols as well."""
        block, out = sub_pixels(self.scale)
        return side * out // block

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
