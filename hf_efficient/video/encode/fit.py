"""fit_video: from a video file to a bundle; `stages.py` has its stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import StrPath
from hf_efficient.video.networks.devices import find_device
from hf_efficient.video.settings import AUTO, FitSettings

from .delta_fit import DeltaFit
from .scene_fit import SceneFit
from .stages import Fit as Fit


def fit_video(
    source: StrPath,
    output: StrPath,
    settings: FitSettings | None = None,
    *,
    overwrite: bool = False,
    progress_bar: bool = True,
    device: str = AUTO,
    progress: Callable[[int], object] | None = None,
    **changes: Any,
) -> Bundle:
    """Overfit networks to a video and write the bundle that plays it.

    If it is killed, call it again with the same arguments: it goes on where it was and makes the same bundle, bit for
    bit. Its work lies in `output`.partial, beside the bundle. In a script started by `torchrun --nproc-per-node 2` or
    `accelerate launch --multi_gpu --num_processes 2` (on a CPU too), the processes share out the networks, or the
    batches of a single network. `accelerate launch --cpu` starts one process.

    Source: Li et al., "Towards High-Quality and Efficient Video Super-Resolution via Spatial-Temporal Data
    Overfitting", CVPR 2023 (huggingface.co/papers/2303.08331).

    Args:
        source: a video file.
        output: folder of the bundle. It appears at the end, whole.
        settings: how the video becomes a bundle; None: the defaults of FitSettings.
        overwrite: replace an existing bundle, and discard unfinished work with other settings.
        progress_bar: show progress and the time left.
        device: where to train: "cpu", "cuda", ...; "auto" takes a GPU if there is one.
        progress: called with 1 for each frame that is read and for each training step. An exception that it raises ends
            the fit.
        changes: fields of FitSettings by name; they replace those of `settings`.

    Returns:
        The opened bundle.

    Raises:
        MediaError: the source cannot be used; see `files.reader.probe`.
        FileExistsError: `output` exists, or beside it lies unfinished work with other settings.
        ValueError: a setting is out of range, or the device does not exist.
    """
    chosen = FitSettings(**{**(asdict(settings) if settings else {}), **changes})
    kind = Fit
    if chosen.assignment.starts_from_general:
        kind = DeltaFit if chosen.scenes == 1 else SceneFit
    return kind(Path(source), Path(output), chosen, progress_bar, find_device(device), progress).run(overwrite)
