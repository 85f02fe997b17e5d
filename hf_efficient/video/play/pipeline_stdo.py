"""STDOPipeline: a bundle as a diffusers pipeline."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import PreTrainedModel  # noqa: F401  diffusers looks for the component's base class in this namespace

from hf_efficient.compat.diffusers import register_component
from hf_efficient.extras import extra
from hf_efficient.files import copy_file, folder_written_whole, is_local
from hf_efficient.reading import read_json
from hf_efficient.video.files.bundle import BUNDLE, Bundle
from hf_efficient.video.files.manifest import (
    EXTRA,
    MANIFEST_NAME,
    MODEL_FOLDER,
    PIPELINE,
    RECORD_NAME,
    BundleError,
    write_manifest,
)
from hf_efficient.video.files.reader import probe, read_frames
from hf_efficient.video.geometry import Geometry
from hf_efficient.video.networks.experts import CONFIG_NAME, DEFAULTS, DELTA_NAME, save_experts
from hf_efficient.video.networks.modeling_stdo import STDOModel

from .decode import decode
from .player import Player

with extra("video"):
    from diffusers import DiffusionPipeline
    from diffusers.utils import BaseOutput

# model_index.json then names the component by our public name, which stays when modules move
register_component("hf_efficient", "STDOModel")

Video = str | os.PathLike[str] | np.ndarray | torch.Tensor | Sequence[Image.Image]


@dataclass
class STDOPipelineOutput(BaseOutput):
    """Frames of the requested type, or the path of the video that was written.

    Args:
        frames: list of PIL images; (T, H, W, 3) float32 array or (T, 3, H, W) tensor in [0, 1]; or a path.
    """

    frames: Any


class STDOPipeline(DiffusionPipeline):
    """From low to high resolution, by networks that were overfitted to this one video.

    `fit_video` makes the bundle. There is no diffusion in it: as a pipeline it has the `from_pretrained`,
    `save_pretrained`, `push_to_hub`, dtype, device, progress bar and output types that users of diffusers know. Weights
    that are stored in float16 compute in float32 unless `dtype` says otherwise.

        pipe = STDOPipeline.from_pretrained("bundle/")
        pipe(output_path="out.mp4")                     # with sound, subtitles, time stamps and tags of the source
        frames = pipe(output_type="pil").frames

    Source: Li et al., "Towards High-Quality and Efficient Video Super-Resolution via Spatial-Temporal Data
    Overfitting", CVPR 2023 (huggingface.co/papers/2303.08331).

    Args:
        model: the networks. `from_pretrained` adds their bundle, without which no video can be played or saved.
    """

    model_cpu_offload_seq = "model"
    bundle: Bundle | None = None

    def __init__(self, model: STDOModel) -> None:
        super().__init__()
        self.register_modules(model=model)

    def __repr__(self) -> str:
        if self.bundle is None:
            return f"{type(self).__name__}({self.model.config.num_experts} x {self.model.config.backbone}, no bundle)"
        grid, source = self.bundle.geometry, self.bundle.source
        method = self.bundle.manifest.get("fit", {}).get("method", self.model.config.backbone)
        sizes = f"{grid.lr_width}x{grid.lr_height} -> {source.width}x{source.height}"
        return f"{type(self).__name__}({str(self.bundle.path)!r}, {method}, {sizes}, {source.frames} frames)"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> STDOPipeline:
        """Load a bundle from a folder or from the Hub.

        Args:
            pretrained_model_name_or_path: folder, or id of a Hub repository.
            kwargs: `dtype`, `subfolder`, and for the Hub `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Returns:
            The pipeline, on the CPU.

        Raises:
            BundleError: the bundle is damaged or incomplete.
            FileNotFoundError: there is no such folder.
        """
        folder, inside = os.fspath(pretrained_model_name_or_path), kwargs.pop("subfolder", None) or ""
        if not is_local(folder):  # diffusers loads components of other libraries from folders alone
            known = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
            hub = {name: kwargs.pop(name) for name in known if name in kwargs}
            folder = snapshot_download(folder, allow_patterns=f"{inside}/*" if inside else None, **hub)
        folder = os.path.join(folder, inside) if inside else folder
        bundle = Bundle.open(folder)
        _check_index(Path(folder) / "model_index.json")
        Player(bundle)  # strict: transformers would fill a tensor that is absent with noise
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        pipeline = super().from_pretrained(folder, **kwargs)
        pipeline.bundle = bundle
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save as a bundle again: networks, low-resolution video and checksums.

        Args:
            save_directory: a new or empty folder, or a bundle, which is replaced as a whole.
            push_to_hub: upload it as well; `repo_id`, `token`, `private`, ... as in diffusers.
            kwargs: as in diffusers; weights are always written as the bundle stores them.

        Raises:
            BundleError: the pipeline was made from a model alone, so that there is no video to save.
            FileExistsError: the folder holds files that are not part of a bundle.
            OSError: the folder cannot be written, or the disk is full; an old bundle is kept.
        """
        bundle, config = self._opened(), self.model.config
        fields = {name: getattr(config, name) for name in DEFAULTS}
        packed = self.model.routing.cpu().numpy().tobytes()
        extra = {name: bundle.manifest[name] for name in EXTRA if name in bundle.manifest}
        with folder_written_whole(save_directory, BUNDLE) as draft:
            copied = [bundle.low_resolution.name, "README.md"]
            if bundle.is_delta:  # what is sent is not weights: as it is
                (draft / MODEL_FOLDER).mkdir()
                model = [f"{MODEL_FOLDER}/{name}" for name in (CONFIG_NAME, DELTA_NAME)]
                copied += [MANIFEST_NAME, RECORD_NAME, "model_index.json", *model]
            for name in copied:
                if (bundle.path / name).exists():
                    copy_file(bundle.path / name, draft / name)
            if not bundle.is_delta:
                save_experts(draft / MODEL_FOLDER, fields, self.model.experts, packed)
                write_manifest(draft, bundle.low_resolution.name, bundle.manifest["source"], **extra)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        video: Video | None = None,
        output_type: str = "pil",
        output_path: str | os.PathLike[str] | None = None,
        max_frames: int | None = None,
        return_dict: bool = True,
        **writer: Any,
    ) -> STDOPipelineOutput | tuple[Any]:
        """Enlarge a video.

        Args:
            video: the low-resolution video: a path, (T, H, W, 3) uint8 or float array, (T, 3, H, W) tensor in [0, 1],
                or PIL images; None: the bundle's own.
            output_type: "pil", "np" or "pt". All frames are held in memory; for long videos pass `output_path`.
            output_path: write a video file instead, with flat memory.
            max_frames: stop after this number of frames.
            return_dict: False: return a tuple.
            writer: `codec`, `quality`, `preset` of `hf_efficient.video.play.decode.decode`.

        Returns:
            The frames, or the path that was written.

        Raises:
            BundleError: the pipeline has no bundle, or the video differs from the bundle's in size or length.
            ValueError: `output_type` is not known.
        """
        if output_path is not None:
            if video is not None:
                raise ValueError("output_path= writes the bundle's own video: leave out video=.")
            player = Player(self._opened(), self.device, self.model.experts)
            with self.progress_bar(total=max_frames or player.bundle.source.frames) as bar:
                result: Any = decode(player, output_path, max_frames=max_frames, progress=bar.update, **writer)
        else:
            if output_type not in ("pil", "np", "pt"):
                raise ValueError(f"output_type={output_type!r} is not known; expected 'pil', 'np' or 'pt'.")
            result = self._convert(list(self._frames(video, max_frames)), output_type)
        return STDOPipelineOutput(frames=result) if return_dict else (result,)

    def _frames(self, video: Video | None, max_frames: int | None) -> Iterator[np.ndarray]:
        """High-resolution frames, (H, W, 3) uint8."""
        player = Player(self._opened(), self.device, self.model.experts)
        frames = _as_frames(player.bundle.low_resolution if video is None else video)
        labels = player.labels()
        geometry: Geometry = player.geometry
        with self.progress_bar(total=max_frames or player.bundle.source.frames) as bar:
            for t, frame in enumerate(islice(frames, max_frames)):
                if frame.shape != (geometry.lr_height, geometry.lr_width, 3):
                    raise BundleError(
                        f"Frame {t} is {frame.shape}; the networks fit a video of {geometry.lr_width}x"
                        f"{geometry.lr_height} in color, the bundle's {player.bundle.low_resolution.name}."
                    )
                mine = next(labels, None)
                if mine is None:
                    raise BundleError(f"The video has more than the bundle's {t} frames: it is another video.")
                yield player.enlarge(frame, mine)
                bar.update()

    def _convert(self, frames: list[np.ndarray], output_type: str) -> Any:
        if output_type == "pil":
            return [Image.fromarray(frame) for frame in frames]
        stack = np.stack(frames).astype(np.float32) / 255
        return stack if output_type == "np" else torch.from_numpy(stack).permute(0, 3, 1, 2)

    def _opened(self) -> Bundle:
        if self.bundle is None:
            raise BundleError(f"This pipeline has no bundle ({MANIFEST_NAME}): load it with from_pretrained.")
        return self.bundle


def _check_index(path: Path) -> None:
    """Raise BundleError unless diffusers' own file names our model: diffusers imports what it names."""
    try:
        index = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    named = {name: value for name, value in index.items() if name == "_class_name" or not name.startswith("_")}
    expected = {name: PIPELINE[name] for name in ("_class_name", "model")}
    if named != expected:
        raise BundleError(f"{path} is not that of an STDO bundle: expected {expected}. Copy the bundle again.")


def _as_frames(video: Video) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8, one at a time."""
    if isinstance(video, (str, os.PathLike)):
        return (frame.rgb for frame in read_frames(video, probe(video)))
    if isinstance(video, torch.Tensor):
        video = video.permute(0, 2, 3, 1).cpu().numpy()
    if isinstance(video, np.ndarray):
        if video.dtype == np.uint8:
            return iter(video)
        return (np.floor(frame.astype(np.float32).clip(0, 1) * 255 + 0.5).astype(np.uint8) for frame in video)
    return (np.array(image.convert("RGB")) for image in video)
