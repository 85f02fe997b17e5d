"""What may enlarge a stream, from nothing sent to a delta of all weights; the one with the best rate and distortion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_efficient.video.files.reader import VideoInfo
from hf_efficient.video.networks.backbones.luma import luma_error
from hf_efficient.video.networks.experts import config_text
from hf_efficient.video.networks.inference import enlarge
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.patches import psnr, round8

from .losses import Loss
from .patch_store import Pair

SAMPLES = 12  # frames that candidates are compared on, spread over the video


@dataclass
class Candidate:
    """One way to enlarge.

    Args:
        name: "bicubic", "filter", "general", "scales", "delta" or "scenes".
        config: fields of the model's config.json.
        delta: what is sent for it.
        nets: the networks, as a player restores them.
        spec: what builds each.
        of_frame: (T,) the network of every frame; empty for one network.
        packed: the map that says so.
        record: further fields of the fit's record.
    """

    name: str
    config: dict[str, Any]
    delta: bytes
    nets: list[nn.Module]
    spec: NetworkSpec
    of_frame: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    packed: bytes = b""
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the model's files."""
        return len(self.packed) + len(self.delta) + len(config_text(self.config))

    def net(self, t: int) -> nn.Module:
        """The network that enlarges frame t."""
        return self.nets[self.of_frame[t]] if len(self.of_frame) else self.nets[0]


def compare(
    candidates: Sequence[Candidate],
    pairs: Iterable[Pair],
    info: VideoInfo,
    device: torch.device,
    every: int,
    loss: Loss,
) -> list[dict[str, Any]]:
    """Bytes and PSNR of each candidate on every `every`-th frame, whole frames, errors pooled.

    Returns:
        For each its "name" and "bytes"; "psnr" of RGB and "psnr_luma", in dB; "error", the loss.
    """
    errors: list[list[tuple[float, float, float]]] = [[] for _ in candidates]
    for t, pair in islice(enumerate(pairs), 0, None, every):
        for candidate, found in zip(candidates, errors, strict=True):
            found.append(frame_error(candidate.net(t), candidate.spec, pair, info, device, loss))
    rows = []
    for candidate, found in zip(candidates, errors, strict=True):
        rgb, y, of_loss = np.mean(found, 0).tolist()
        row = {"name": candidate.name, "bytes": candidate.bytes, "psnr": round(psnr(rgb), 4)}
        rows.append(row | {"psnr_luma": round(psnr(y), 4), "error": of_loss})
    return rows


def frame_error(
    net: nn.Module, spec: NetworkSpec, pair: Pair, info: VideoInfo, device: torch.device, loss: Loss
) -> tuple[float, float, float]:
    """Mean squared error of RGB and of luma, and the loss, of a frame as it is played."""
    large = enlarge([net], [spec], pair.lr.to(device), None, (1, 1)).cpu()
    played, truth = (round8(x[..., : info.height, : info.width]) / 255 for x in (large, pair.hr))
    error = float((played - truth).square().mean())
    return error, float(luma_error(played, truth)), float(loss(played, truth))


def best(rows: Sequence[dict[str, Any]], stream_bytes: int, most: int = 0) -> int:
    """The number of the candidate with the least D + λ R, among those of at most `most` bytes, if that is not 0.

    D is the loss (by default the squared error of luma), R the bytes of the model.
    """
    price = byte_price(rows, stream_bytes)
    costs = [row["error"] + price * row["bytes"] for row in rows]
    least = min(row["bytes"] for row in rows)  # something has to be sent
    allowed = [n for n, row in enumerate(rows) if not most or row["bytes"] <= max(most, least)]
    return min(allowed, key=costs.__getitem__)


def byte_price(rows: Sequence[dict[str, Any]], stream_bytes: int) -> float:
    """λ = D(bicubic) / bytes of the stream.

    At these rates a codec's error falls in about the proportion in which its bits grow, so that a byte of the model is
    worth what a byte more of the stream is.
    """
    bicubic: float = next(row["error"] for row in rows if row["name"] == "bicubic")
    return bicubic / max(stream_bytes, 1)
