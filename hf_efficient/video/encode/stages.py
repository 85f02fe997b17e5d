"""The stages from a video file to a bundle. Each leaves a finished file, so that a fit can be resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_efficient.files import locked, written_whole
from hf_efficient.reading import read_array
from hf_efficient.video import routing
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.manifest import CONVERSION, MODEL_FOLDER, sha256
from hf_efficient.video.files.reader import MediaError, VideoInfo, probe, read_frames
from hf_efficient.video.growing_table import GrowingTable
from hf_efficient.video.measure.break_even import warn_before
from hf_efficient.video.methods.stdo import error_shares
from hf_efficient.video.networks.experts import DEFAULTS, save_experts
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.networks.weights import add_weight_norm, as_stored
from hf_efficient.video.patches import Geometry, patch_errors, psnr
from hf_efficient.video.settings import FitSettings

from .description import describe
from .low_resolution import downscaled, made_for, stream_name, write_stream
from .overfit import Recipe, load_checkpoint, overfit, store_error
from .patch_store import Pair, PatchStore, paired_frames, patch_sizes, write_stores
from .processes import Processes
from .progress import Progress
from .rate_control import network_bytes
from .scoring import general_model, scorer_identity
from .training_plan import GENERAL, TrainingPlan
from .work_folder import WorkFolder


class Fit:
    """The stages of a fit. A stage whose result lies in the work folder already does nothing."""

    plan_class = TrainingPlan

    def __init__(
        self,
        source: Path,
        output: Path,
        settings: FitSettings,
        progress_bar: bool,
        device: torch.device,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.source, self.output, self.settings, self.device = source, output, settings, device
        self.processes = Processes()
        self.info: VideoInfo = probe(source, settings.alpha, settings.interlaced)
        self.progress = Progress(progress_bar and self.processes.first, progress, self.info.frames)
        if self.info.bits > 8:
            warnings.warn(
                f"{str(source)!r} has {self.info.bits} bits per color; it is fitted and played at 8.", stacklevel=3
            )
        if self.info.dropped:
            warnings.warn(
                f"The frames of {str(source)!r} carry {', '.join(self.info.dropped)}, which is not kept.", stacklevel=3
            )
        self.geometry = Geometry.choose(self.info.width, self.info.height, settings.scale)
        self.folder = WorkFolder(output)
        self.work, self.draft = self.folder.folder, self.folder.draft
        self.low_resolution = self.draft / stream_name(self.info)
        self.record = {**asdict(settings), "scorer": scorer_identity(settings.scorer)}
        self.identity = {**self.record, "source": sha256(source), "conversion": CONVERSION}

    def run(self, overwrite: bool = False) -> Bundle:
        """All stages."""
        first = self.processes.first
        if first:
            self.folder.check(self.source, overwrite)
            self.output.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.output) if first else nullcontext():  # the first process holds it for all
            done = self.folder.is_finished() and self.folder.begun_with(self.identity)
            self.processes.wait()
            if not done:
                self._run(overwrite)
            elif first:
                self.folder.recover()
            self.processes.wait()
        return Bundle.open(self.output)

    def _run(self, overwrite: bool) -> None:
        if self.processes.first:
            self.prepare(overwrite)
            warn_before(self.source, self.info, self.settings.steps, self.network_bytes())
            try:
                self.make_low_resolution()
                self.score()
                self.make_stores()
                self.check_source()
            except MediaError:  # the source is broken further on: nothing of it is worth keeping
                self.folder.delete()
                raise
        self.processes.wait()
        self.train()
        self.processes.wait()
        if self.processes.first:
            self.check_source()
            self.finish()

    def check_source(self) -> None:
        """Raise MediaError, and delete the work, if the source is no longer the file with which it began."""
        if sha256(self.source) != self.identity["source"]:
            self.folder.delete()
            raise MediaError(
                f"{str(self.source)!r} was changed while it was fitted: stream and networks are of different videos. "
                "Call again when nothing writes to it."
            )

    def network_bytes(self) -> int:
        """Bytes of all networks on disk, as far as they are known before the work."""
        return network_bytes(self.settings)

    def prepare(self, overwrite: bool) -> None:
        """Make or check the work folder."""
        self.folder.begin(self.source, self.identity, overwrite)

    def make_low_resolution(self) -> None:
        """Encode the low-resolution stream. Networks are trained on its decoded frames."""
        if not self.low_resolution.exists():
            with self.progress.frames(read_frames(self.source, self.info), "low resolution") as frames:
                small = downscaled(frames, self.geometry, made_for(self.settings, self.device))
                write_stream(self.source, self.info, small, self.geometry, self.settings, self.low_resolution)

    def score(self) -> None:
        """errors.npy: (T, I·J) float32, the error of the general model on each patch."""
        if not (self.work / "errors.npy").exists():
            f0 = general_model(self.settings.scorer, self.settings.scale, self.device)
            errors = GrowingTable(np.float32)
            with self.progress.frames(self.pairs(), "scoring") as pairs:
                for lr, hr in pairs:
                    errors.add(patch_errors(f0(lr), hr, self.geometry))
            with written_whole(self.work / "errors.npy") as draft:
                np.save(draft, errors.array())

    @property
    def plan(self) -> TrainingPlan:
        """Which network is trained on which patches; available after `score`.

        Raises:
            ValueError: its file is damaged, or of another video.
        """
        path = self.work / "errors.npy"
        errors = np.array(read_array(path, "float32", (None, self.geometry.rows * self.geometry.columns)))
        if not (np.isfinite(errors) & (errors >= 0)).all():
            raise ValueError(
                f"{path} is damaged: it holds numbers that are not errors of patches. Delete it: it is made again."
            )
        return self.plan_class(self.settings, errors)

    def store(self, name: str) -> PatchStore:
        """The training patches of a network; available after `make_stores`.

        Raises:
            ValueError: one of their files is damaged, or belongs to another plan.
        """
        sizes = patch_sizes(self.geometry, self.settings.context)
        return PatchStore(self.work / name, len(self.wanted_patches()[name]), sizes)

    def wanted_patches(self) -> dict[str, np.ndarray]:
        """Name of each store -> sorted numbers of its patches."""
        return self.plan.chosen_patches()

    def checkpoint(self, name: str) -> Path:
        """The file of a network's training."""
        return self.work / f"{name}.safetensors"

    def make_stores(self) -> None:
        """Cut the training patches of all networks in one pass."""
        wanted = {n: numbers for n, numbers in self.wanted_patches().items() if not (self.work / n).exists()}
        if wanted:
            folders = [self.work / n for n in wanted]
            with self.progress.frames(self.pairs(), "cutting patches") as pairs:
                write_stores(pairs, self.geometry, self.settings.context, list(wanted.values()), folders)

    def train(self) -> None:
        """Train the networks that belong to this process."""
        recipes = self.plan.recipes()
        chained = self.settings.warm_start == "previous"  # one after the other: all processes share each
        together = {name: r for name, r in recipes.items() if name == GENERAL or len(recipes) == 1 or chained}
        with self.progress.training(sum(r.steps for r in recipes.values())) as count:
            for name, recipe in together.items():
                self._train(name, recipe, count, self.processes.share)
                self.processes.wait()
            for n, (name, recipe) in enumerate((n, r) for n, r in recipes.items() if n not in together):
                if n % self.processes.count == self.processes.rank:
                    self._train(name, recipe, count, (0, 1))

    def _train(self, name: str, recipe: Recipe, count: Callable[[str, int], None], process: tuple[int, int]) -> None:
        net = self.new_network(self.plan.spec(name), recipe.seed)
        start = self.plan.start(name)
        if start is not None:
            load_checkpoint(self.checkpoint(start), net)
        overfit(net, self.store(name), recipe, self.checkpoint(name), partial(count, name), process)

    def new_network(self, spec: NetworkSpec, seed: int) -> nn.Module:
        """An untrained network, with weight norm if its paper has it."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = spec.build()
        net.start_from_bicubic()
        return (add_weight_norm(net) if net.weight_norm else net).to(self.device)

    def finish(self) -> None:
        """Pack the map, write the model, and move the bundle to its name."""
        s, g, plan = self.settings, self.geometry, self.plan
        labels, k = plan.labels()
        per_chunk = s.assignment.per_chunk
        experts, records = self.stored_experts(k if per_chunk else 1)
        shares = error_shares(plan.errors.ravel(), labels, k).tolist() if per_chunk else [1.0]
        for record, share in zip(records, shares, strict=True):
            record["error_share"] = round(share, 4)
        maps = labels.reshape(-1, g.rows, g.columns)
        packed = routing.pack(maps, len(experts)) if len(experts) > 1 else b""
        config = {name: getattr(s, name) for name in DEFAULTS if hasattr(s, name)}
        config |= {"num_experts": len(experts), "routing_bytes": len(packed)}
        config |= {"patch_width": g.patch_width, "patch_height": g.patch_height}
        save_experts(self.draft / MODEL_FOLDER, config, experts, packed)
        describe(
            self.draft, self.low_resolution.name, self.source, self.info, config, self.device, frames=len(plan.errors),
            fit=self.record, experts=records, general_patch_psnr=round(psnr(plan.errors.mean(dtype=np.float64)), 4),
        )  # fmt: skip
        self.folder.publish(self.identity)

    def stored_experts(self, k: int) -> tuple[nn.ModuleList, list[dict[str, Any]]]:
        """The networks as they are stored, and the PSNR on their patches before and after."""
        plan, experts, records = self.plan, nn.ModuleList(), []
        trained = [name for name in plan.chosen_patches() if name != GENERAL]
        for m in range(k):
            name = f"expert-{m}" if f"expert-{m}" in trained else trained[0]  # an empty chunk: no patch is routed to it
            net, store = self.new_network(plan.spec(name), 0), self.store(name)
            record: dict[str, Any] = {"patches": len(store), "steps": load_checkpoint(self.checkpoint(name), net)}
            record["psnr_float32"] = round(psnr(store_error(net.eval(), store, plan.trims(name))), 4)
            as_stored(net, self.settings.weight_dtype)
            record["psnr_stored"] = round(psnr(store_error(net, store, plan.trims(name))), 4)
            experts.append(net.cpu())
            records.append(record)
        return experts, records

    def pairs(self) -> Iterator[Pair]:
        """Frames of the stream and the source, in order."""
        return paired_frames(self.source, self.info, self.low_resolution, self.geometry)
