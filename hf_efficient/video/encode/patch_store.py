"""Training patches of a video: cut in one pass over the frames, kept on disk as bytes.

Memory does not grow with the video, and disk space only with the patches that are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_efficient.files import NpyWriter, folder_written_whole, require_space
from hf_efficient.reading import read_array
from hf_efficient.video.files.reader import MediaError, VideoInfo, read_frames
from hf_efficient.video.patches import Geometry, crop, pad_to_grid, replicate_border, to_tensor

Sizes = dict[str, tuple[int, int]]


class Pair(NamedTuple):
    """A frame of the stream, as a player decodes it, and the same frame of the source.

    Args:
        lr: (1, 3, lr_height, lr_width) in [0, 1], decoded from the low-resolution stream.
        hr: (1, 3, s·lr_height, s·lr_width) in [0, 1], padded to the grid.
    """

    lr: Tensor
    hr: Tensor


def paired_frames(source: Path, info: VideoInfo, low_resolution: Path, geometry: Geometry) -> Iterator[Pair]:
    """The frames of stream and source, in pairs.

    Raises:
        MediaError: they do not have the same number of frames, or the stream has the wrong size.
    """
    large, small = read_frames(source, info), read_frames(low_resolution)
    while True:
        hr, lr = next(large, None), next(small, None)
        if hr is None and lr is None:
            return
        if hr is None or lr is None:
            raise MediaError(f"{str(low_resolution)!r} and {str(source)!r} do not have the same number of frames.")
        if lr.rgb.shape[:2] != (geometry.lr_height, geometry.lr_width):
            raise MediaError(f"{str(low_resolution)!r} does not have the size that belongs to {str(source)!r}.")
        yield Pair(to_tensor(lr.rgb), pad_to_grid(to_tensor(hr.rgb), geometry))


def patch_sizes(geometry: Geometry, halo: int) -> Sizes:
    """(height, width) of a training patch: "lr" with its context, and "hr"."""
    _, height, width = geometry.windows()
    return {"lr": (height + 2 * halo, width + 2 * halo), "hr": (geometry.large(height), geometry.large(width))}


class PatchStore:
    """Patches cut by `write_stores`; opened without reading them.

    Args:
        folder: of the store.
        patches: N that is expected; None: any.
        sizes: of the patches that are expected, see `patch_sizes`; None: any.

    Raises:
        ValueError: a file is damaged, or holds other patches.

    Attributes:
        lr: (N, 3, h + 2·halo, w + 2·halo) uint8, with a halo of context; beyond the frame its border is
            replicated.
        hr: (N, 3, s·h, s·w) uint8.
    """

    def __init__(self, folder: Path, patches: int | None = None, sizes: Sizes | None = None) -> None:
        lr, hr = (sizes["lr"], sizes["hr"]) if sizes else ((None, None), (None, None))
        self.lr = read_array(folder / "lr.npy", "uint8", (patches, 3, *lr))
        self.hr = read_array(folder / "hr.npy", "uint8", (len(self.lr), 3, *hr))

    def __len__(self) -> int:
        return len(self.lr)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Patches: lr (B, 3, h + 2·halo, w + 2·halo) and hr (B, 3, s·h, s·w) in [0, 1]."""
        lr, hr = (torch.from_numpy(a[indices]).float() / 255 for a in (self.lr, self.hr))
        return lr, hr


def write_stores(
    pairs: Iterator[Pair], geometry: Geometry, halo: int, wanted: Sequence[np.ndarray], folders: Sequence[Path]
) -> None:
    """Cut the wanted patches out of all frames, in one pass. Each folder appears whole or not at all.

    Args:
        pairs: the frames.
        geometry: the grid.
        halo: low-resolution pixels of context around each patch.
        wanted: for each store, the sorted indices of its patches, in order t, i, j.
        folders: one for each store.
    """
    sizes = patch_sizes(geometry, halo)
    require_space(
        folders[0].parent, sum(map(len, wanted)) * 3 * sum(map(math.prod, sizes.values())), "training patches"
    )
    with ExitStack() as stack:
        arrays = []
        for folder, numbers in zip(folders, wanted, strict=True):
            draft = stack.enter_context(folder_written_whole(folder, lock=False))
            arrays.append([
                stack.enter_context(NpyWriter(draft / f"{name}.npy", np.uint8, (len(numbers), 3, *size)))
                for name, size in sizes.items()
            ])  # fmt: skip
        _fill(pairs, geometry, halo, wanted, sizes, arrays)


def _fill(
    pairs: Iterator[Pair], geometry: Geometry, halo: int, wanted: Sequence[np.ndarray],
    sizes: Sizes, arrays: list[list[NpyWriter]],
) -> None:  # fmt: skip
    per_frame = geometry.rows * geometry.columns
    starts = geometry.windows()[0]
    filled = [0] * len(wanted)
    for t, (lr, hr) in enumerate(pairs):
        small = replicate_border(lr, halo)
        for n, numbers in enumerate(wanted):
            first, last = filled[n], int(np.searchsorted(numbers, (t + 1) * per_frame))
            if last == first:
                continue
            corners = starts[numbers[first:last] % per_frame]
            arrays[n][0].add((crop(small[0], corners, *sizes["lr"]) * 255).round().byte().numpy())
            arrays[n][1].add(
                (crop(hr[0], (corners * geometry.scale).astype(int), *sizes["hr"]) * 255).round().byte().numpy()
            )
            filled[n] = last
    if filled != [len(numbers) for numbers in wanted]:
        raise ValueError("Some of the wanted patches lie after the last frame.")
