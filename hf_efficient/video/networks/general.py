"""The general networks that the package ships: they enlarge any decoded stream, and every delta starts from one.

`examples/train_general_upscaler.py` trains them; model_cards/general_upscalers.md describes them.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import nn

from hf_efficient.reading import FLOATS, read_tensors, shown

from .spec import NetworkSpec

FOLDER = Path(__file__).parents[2] / "assets" / "general_upscalers"
NAME = re.compile(r"luma_x(\d(?:\.5)?)_w(\d+)\.safetensors")


class General(NamedTuple):
    """A general network: its file, what builds it, and the start of its file's SHA-256, by which bundles name it."""

    path: Path
    spec: NetworkSpec
    digest: str

    def load(self) -> nn.Module:
        """The network, in float32."""
        net = self.spec.build()
        shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
        net.load_state_dict({name: t.float() for name, t in read_tensors(self.path, shapes, FLOATS).items()})
        return net.eval().requires_grad_(False)


def whole_or_half(text: str) -> float:
    """The number that a scale is written as: 2, not 2.0."""
    return float(text) if "." in text else int(text)


@cache
def general_networks() -> tuple[General, ...]:
    """All that this package has."""
    found = []
    for path in sorted(FOLDER.glob("*.safetensors")):
        if name := NAME.fullmatch(path.name):
            spec = NetworkSpec("luma_wdsr", whole_or_half(name[1]), int(name[2]), 2)
            found.append(General(path, spec, hashlib.sha256(path.read_bytes()).hexdigest()[:32]))
    return tuple(found)


def general_network(scale: float, width: int) -> General:
    """The general network of a scale and a width.

    Raises:
        ValueError: there is none of this width; the message names the widths.
    """
    for general in general_networks():
        if (general.spec.scale, general.spec.num_features) == (scale, width):
            return general
    widths = ", ".join(str(g.spec.num_features) for g in general_networks() if g.spec.scale == scale)
    raise ValueError(f"num_features={shown(width)}: there is no general network of this width; expected {widths}.")


def anchor(scale: float) -> General:
    """The narrowest general network of a scale, which tables compare with: it costs no bits."""
    return min((g for g in general_networks() if g.spec.scale == scale), key=lambda g: g.spec.num_features)


def find_general(digest: str) -> General:
    """The general network that a bundle names.

    Raises:
        ValueError: this package does not have it.
    """
    for general in general_networks():
        if general.digest == digest:
            return general
    raise ValueError(
        f"general={shown(digest)} names a general network that this package does not have, and without it the "
        "weights cannot be restored. Upgrade hf_efficient, or encode the video again."
    )
