"""STDOModel: the networks of a video as one transformers model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageToImage, PreTrainedModel
from transformers.modeling_outputs import ImageSuperResolutionOutput

from hf_efficient.compat.transformers import unregister_model
from hf_efficient.files import is_local
from hf_efficient.reading import errors_named
from hf_efficient.video import routing

from .configuration_stdo import STDOConfig
from .experts import CONFIG_NAME, DELTA_NAME, WEIGHTS_NAME, build_experts, check_weights, load_config, load_experts
from .inference import enlarge, enlarge_whole


class STDOModel(PreTrainedModel):
    """k networks, each overfitted to its share of one video's patches, and the packed map of their patches.

    `fit_video` makes it. It loads and saves like any transformers model (`AutoModel.from_pretrained` after
    `import hf_efficient`) and trains with the stock Trainer (`pixel_values`, `labels`), unless it is int8.

    Source: Li et al., "Towards High-Quality and Efficient Video Super-Resolution via Spatial-Temporal Data
    Overfitting", CVPR 2023 (huggingface.co/papers/2303.08331).

    Args:
        config: the networks and the size of their map.

    Attributes:
        experts: the k networks, (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), plain torch modules.
        routing: (routing_bytes,) uint8, see `hf_efficient.video.routing`.
    """

    config_class = STDOConfig
    config: STDOConfig
    base_model_prefix = "stdo"
    main_input_name = "pixel_values"
    _no_split_modules = ()
    routing: Tensor

    def __init__(self, config: STDOConfig) -> None:
        super().__init__(config)
        self.experts = build_experts(config)
        self.register_buffer("routing", torch.zeros(config.routing_bytes, dtype=torch.uint8))
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> STDOModel:
        """Load as transformers does. The weights of a local folder are first compared with its config.

        Args:
            pretrained_model_name_or_path: folder, or id of a Hub repository.
            model_args: as in transformers.
            kwargs: as in transformers: `dtype`, `subfolder`, `revision`, `token`, ...


        Raises:
            ValueError: weights and config do not match, or one of them is damaged.
            FileNotFoundError: there is no such folder.
        """
        if pretrained_model_name_or_path is not None and is_local(pretrained_model_name_or_path):
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if (folder / CONFIG_NAME).is_file() and (folder / DELTA_NAME).is_file():
                return cls._from_delta(folder)
            if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file():
                check_weights(folder, load_config(folder))
                with errors_named(folder / CONFIG_NAME):
                    return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @classmethod
    def _from_delta(cls, folder: Path) -> STDOModel:
        """A general network with the delta of a folder, in float32."""
        fields = load_config(folder)
        experts, packed = load_experts(folder, fields)
        model = cls(STDOConfig(**vars(fields)))
        model.experts.load_state_dict(experts.state_dict())
        model.set_routing(packed)
        return model.eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the networks initialize themselves, as published."""

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        expert: int | Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ImageSuperResolutionOutput | tuple[Tensor, ...]:
        """Enlarge patches.

        Args:
            pixel_values: (B, 3, H, W) in [0, 1].
            labels: (B, 3, sH, sW) in [0, 1]: the true patches, for the L1 loss.
            expert: which network: one number, or (B,) long. It must be given if there are several networks.
            return_dict: False: return a tuple.

        Returns:
            `reconstruction` (B, 3, sH, sW), not clamped, and `loss` if labels are given.

        Raises:
            ValueError: there are several networks and `expert` is not given, or there is no such network.
        """
        k, specs = len(self.experts), self.config.networks
        if expert is None:
            if k > 1:
                raise ValueError(f"This model has {k} networks: pass expert=, one number or one for each patch.")
            expert = 0
        chosen = torch.as_tensor(expert).expand(len(pixel_values)).tolist()
        if not all(0 <= m < k for m in chosen):
            raise ValueError(f"expert={expert!r} is out of range; expected 0 to {k - 1}.")
        if len(set(chosen)) == 1:
            reconstruction = enlarge_whole(self.experts[chosen[0]], specs[chosen[0]], pixel_values)
        else:
            one_by_one = [
                enlarge_whole(self.experts[m], specs[m], x[None]) for m, x in zip(chosen, pixel_values, strict=True)
            ]
            reconstruction = torch.cat(one_by_one)
        loss = None if labels is None else F.l1_loss(reconstruction, labels)
        if return_dict is False:
            return (reconstruction,) if loss is None else (loss, reconstruction)
        return ImageSuperResolutionOutput(loss=loss, reconstruction=reconstruction)

    def enlarge(self, frame: Tensor, labels: np.ndarray | None = None) -> Tensor:
        """Enlarge a whole frame, each patch by its network with full context.

        Args:
            frame: (1, 3, H, W) in [0, 1].
            labels: (I, J) expert of each patch; None: the first for all.

        Returns:
            (1, 3, sH, sW), not clamped.
        """
        return enlarge(list(self.experts), self.config.networks, frame, labels, self.patch_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of the routing grid in low-resolution pixels."""
        return self.config.patch_height, self.config.patch_width

    def frame_labels(self, rows: int, columns: int) -> Iterator[np.ndarray]:
        """The expert of each patch, frame by frame.

        Args:
            rows: of the grid of patches.
            columns: likewise.

        Yields:
            (rows, columns) uint8 for each frame; endless if there is one expert.

        Raises:
            RoutingError: the map is damaged, or belongs to another grid.
        """
        return routing.unpack(self.routing.cpu().numpy().tobytes(), rows, columns, self.config.num_experts)

    def set_routing(self, packed: bytes) -> None:
        """Replace the packed routing map.

        Args:
            packed: as made by `routing.pack`.
        """
        self.config.routing_bytes = len(packed)
        self.routing = torch.frombuffer(bytearray(packed), dtype=torch.uint8) if packed else self.routing[:0]


def register() -> None:
    """Register STDOModel with the Auto classes of transformers."""
    options: dict[str, Any] = {"exist_ok": True}
    AutoModel.register(STDOConfig, STDOModel, **options)
    AutoModelForImageToImage.register(STDOConfig, STDOModel, **options)


def unregister() -> None:
    """Undo `register`."""
    unregister_model(STDOConfig, AutoModel, AutoModelForImageToImage)


register()
