"""A bundle's frames at high resolution, one by one. It needs torch, safetensors and PyAV alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from hf_efficient.video import routing
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.manifest import BundleError
from hf_efficient.video.files.played import PlayedFrame, SmallFrame, played_frames, small_frames
from hf_efficient.video.files.reader import StrPath
from hf_efficient.video.networks.devices import find_device
from hf_efficient.video.networks.experts import load_config, load_experts, network_specs
from hf_efficient.video.networks.inference import enlarge
from hf_efficient.video.patches import to_rgb8, to_tensor


class Player:
    """An opened bundle and its networks.

    Args:
        bundle: folder, or an opened bundle.
        device: where the networks run.
        experts: networks on that device, to use instead of the stored ones.

    Raises:
        BundleError: the bundle is damaged or inconsistent.
    """

    def __init__(
        self, bundle: StrPath | Bundle, device: str | torch.device = "cpu", experts: nn.ModuleList | None = None
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        try:
            self.config = load_config(self.bundle.model)
            stored, self.packed = load_experts(self.bundle.model, self.config)
        except ValueError as error:
            raise BundleError(str(error)) from error
        self.bundle.check_unchanged()
        self.device = find_device(device)
        self.experts = stored.to(self.device) if experts is None else experts
        self.dtype = next(t.dtype for t in self.experts.state_dict().values() if t.is_floating_point())
        self.specs = network_specs(self.config)
        self.geometry = self.bundle.geometry

    def __repr__(self) -> str:
        specs = f"{len(self.specs)} x {self.config.backbone}"
        return f"Player({str(self.bundle.path)!r}, {specs} x{self.config.scale}, {self.device})"

    def labels(self) -> Iterator[np.ndarray]:
        """(I, J) expert of each patch, frame by frame."""
        return routing.unpack(self.packed, self.geometry.rows, self.geometry.columns, self.config.num_experts)

    def enlarge(self, lr: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(lr_height, lr_width, 3) uint8 to (height, width, 3) uint8."""
        patch = (self.config.patch_height, self.config.patch_width)
        # convolutions of few channels are a fifth faster with channels last
        frame = to_tensor(lr).to(self.device, self.dtype, memory_format=torch.channels_last)
        output = enlarge(list(self.experts), self.specs, frame, labels, patch)
        source = self.bundle.source
        return to_rgb8(output.cpu()[..., : source.height, : source.width])

    def small_frames(self, every: int = 1) -> Iterator[SmallFrame]:
        """The decoded frames in order with their maps, not enlarged; as `frames`."""
        bundle = self.bundle
        return small_frames(
            bundle.path, bundle.low_resolution, bundle.source, self.labels(), self.config.num_experts, every,
            bundle.check_unchanged,
        )  # fmt: skip

    def frames(self, every: int = 1) -> Iterator[PlayedFrame]:
        """The frames in order, with constant memory.

        Args:
            every: yield every `every`-th frame, from the first.

        Raises:
            BundleError: stream or map do not have the source's number of frames.
        """
        return played_frames(self.small_frames(every), self.enlarge)
