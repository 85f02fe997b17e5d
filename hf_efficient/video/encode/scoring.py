"""The general model f0, which scores the difficulty of a patch: bicubic enlargement, or a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hf_efficient.video.files.manifest import MODEL_FOLDER, sha256
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.networks.experts import WEIGHTS_NAME, load_config, load_experts, network_specs
from hf_efficient.video.networks.inference import enlarge
from hf_efficient.video.settings import BICUBIC


def general_model(scorer: str, scale: float, device: torch.device) -> Callable[[Tensor], Tensor]:
    """f0: (1, 3, h, w) in [0, 1] to (1, 3, s·h, s·w).

    Args:
        scorer: "bicubic", or the folder of an STDO model or bundle of one network, fitted to any video.
        scale: s.
        device: where a network runs.

    Raises:
        ValueError: the folder holds no such model, or one of another scale or of several networks.
    """
    if scorer == BICUBIC:
        return lambda lr: upsample_bicubic(lr, scale)
    folder = weights_file(scorer).parent
    config = load_config(folder)
    if config.scale != scale or config.num_experts != 1:
        raise ValueError(
            f"scorer={scorer!r} holds {config.num_experts} networks for scale {config.scale}; scoring needs one for "
            f"scale {scale}."
        )
    experts = load_experts(folder, config)[0].to(device)
    patch = (config.patch_height, config.patch_width)
    return lambda lr: enlarge(list(experts), network_specs(config), lr.to(device), None, patch).cpu()


def scorer_identity(scorer: str) -> str:
    """What the scores depend on: "bicubic", or the checksum of the network's weights."""
    return scorer if scorer == BICUBIC else sha256(weights_file(scorer))


def weights_file(scorer: str) -> Path:
    """The weights in the folder of a model or a bundle.

    Raises:
        ValueError: there are none.
    """
    for folder in (Path(scorer), Path(scorer) / MODEL_FOLDER):
        if (folder / WEIGHTS_NAME).is_file():
            return folder / WEIGHTS_NAME
    raise ValueError(f"scorer={scorer!r} is neither 'bicubic' nor the folder of an STDO model or bundle.")
