"""fit_video: from a video file to a bundle, in stages that each leave a finished file, so that any can be resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hf_efficient.files import locked, written_whole
from hf_efficient.reading import read_array
from hf_efficient.video import routing
from hf_efficient.video import stdo as chunking
from hf_efficient.video.files.bundle import CONVERSION, MODEL_FOLDER, Bundle, sha256
from hf_efficient.video.files.reader import MediaError, StrPath, VideoInfo, probe, read_frames
from hf_efficient.video.growing_table import GrowingTable
from hf_efficient.video.measure.break_even import describe, say_before
from hf_efficient.video.networks.backbones import NetworkSpec
from hf_efficient.video.networks.devices import find_device
from hf_efficient.video.networks.experts import DEFAULTS, save_experts
from hf_efficient.video.networks.initialization import start_from_bicubic
from hf_efficient.video.networks.weights import add_weight_norm, as_stored
from hf_efficient.video.patches import Geometry, patch_scores, psnr
from hf_efficient.video.settings import AUTO, FitSettings

from .low_resolution import reduced, stream_name, write_stream
from .overfit import Recipe, load_checkpoint, overfit, store_error
from .patch_store import PatchStore, paired_frames, patch_sizes, write_stores
from .processes import Processes
from .scoring import general_model, scorer_identity
from .training_plan import GENERAL, Plan
from .work_folder import WorkFolder


def fit_video(
    source: StrPath,
    output: StrPath,
    *,
    overwrite: bool = False,
    progress_bar: bool = True,
    device: str = AUTO,
    settings: FitSettings | None = None,
    progress: Callable[[int], object] | None = None,
    **changes: Any,
) -> Bundle:
    """Overfit networks to a video and write the bundle that plays it.

    Killed at any moment and called again with the same arguments, it goes on where it was (the work lies in
    `output`.partial beside the bundle) and makes the same bundle, bit for bit. In a script started by
    `torchrun --nproc-per-node 2` or `accelerate launch --multi_gpu --num_processes 2` (on a CPU too), the networks are
    spread over the processes, or one network's batches are. `accelerate launch --cpu` starts one process.

    Args:
        source: a video file.
        output: folder of the bundle, made at the end, whole.
        overwrite: replace a bundle that is there, and forget unfinished work of other settings.
        progress_bar: show progress with the time left.
        device: where to train: "cpu", "cuda", ...; "auto" takes a GPU where there is one.
        settings: what the bundle becomes; the defaults of FitSettings otherwise.
        progress: called with 1 for each frame that is read and each training step; what it raises ends the work.
        changes: fields of FitSettings by name, over `settings`.

    Returns:
        The opened bundle.

    Raises:
        MediaError: the source is not a video that can be used; see `media.probe`.
        FileExistsError: there is something under `output`, or unfinished work of other settings beside it.
        ValueError: a setting is out of range, or there is no such device.
    """
    chosen = FitSettings(**{**(asdict(settings) if settings else {}), **changes})
    fit = Fit(Path(source), Path(output), chosen, progress_bar, find_device(device))
    fit.progress = progress
    return fit.run(overwrite)


class Fit:
    """The stages. Each does nothing where its result lies in the work folder already."""

    plan_class = Plan
    progress: Callable[[int], object] | None = None

    def __init__(self, source: Path, output: Path, settings: FitSettings, progress_bar: bool, device: torch.device):
        self.source, self.output, self.settings, self.device = source, output, settings, device
        self.progress_bar = progress_bar
        self.processes = Processes()
        self.info: VideoInfo = probe(source, settings.alpha, settings.interlaced)
        if self.info.bits > 8:
            warnings.warn(
                f"{str(source)!r} has {self.info.bits} bits a colour; it is fitted and played at 8.", stacklevel=3
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
            say_before(self.source, self.info, self.settings)
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
        """Raise MediaError, and forget the work, if the file is no longer the one that was begun with."""
        if sha256(self.source) != self.identity["source"]:
            self.folder.delete()
            raise MediaError(
                f"{str(self.source)!r} was changed while it was fitted, so that stream and networks are of two videos: "
                "call again when nothing writes to it."
            )

    def prepare(self, overwrite: bool) -> None:
        """Make or check the work folder."""
        self.folder.begin(self.source, self.identity, overwrite)

    def make_low_resolution(self) -> None:
        """The stream that is sent: what the networks are trained on is what its decoder gives."""
        if not self.low_resolution.exists():
            with self._bar(read_frames(self.source, self.info), "low resolution") as frames:
                small = reduced(frames, self.geometry)
                write_stream(self.source, self.info, small, self.geometry, self.settings, self.low_resolution)

    def score(self) -> None:
        """errors.npy: (T, I·J) float32, what the general model makes wrong in each patch."""
        if not (self.work / "errors.npy").exists():
            f0 = general_model(self.settings.scorer, self.settings.scale, self.device)
            errors = GrowingTable(np.float32)
            with self._bar(self._pairs(), "scoring") as pairs:
                for lr, hr in pairs:
                    errors.add(patch_scores(f0(lr), hr, self.geometry))
            with written_whole(self.work / "errors.npy") as draft:
                np.save(draft, errors.array())

    @property
    def plan(self) -> Plan:
        """What is trained on what; there after `score`.

        Raises:
            ValueError: its file is damaged, or of another video.
        """
        path = self.work / "errors.npy"
        errors = np.array(read_array(path, "float32", (None, self.geometry.rows * self.geometry.columns)))
        if not (np.isfinite(errors) & (errors >= 0)).all():
            raise ValueError(
                f"{path} is damaged: it holds what is no error of a patch. Delete it, and it is made again."
            )
        return self.plan_class(self.settings, errors)

    def store(self, name: str) -> PatchStore:
        """The training patches of a network; there after `make_stores`.

        Raises:
            ValueError: a file of them is damaged, or of another plan.
        """
        sizes = patch_sizes(self.geometry, self.settings.halo)
        return PatchStore(self.work / name, len(self.plan.chosen_patches()[name]), sizes)

    def checkpoint(self, name: str) -> Path:
        """The file of a network's training."""
        return self.work / f"{name}.safetensors"

    def make_stores(self) -> None:
        """Cut the training patches of all networks in one pass."""
        wanted = {n: numbers for n, numbers in self.plan.chosen_patches().items() if not (self.work / n).exists()}
        if wanted:
            folders = [self.work / n for n in wanted]
            with self._bar(self._pairs(), "cutting patches") as pairs:
                write_stores(pairs, self.geometry, self.settings.halo, list(wanted.values()), folders)

    def train(self) -> None:
        """Train what belongs to this process."""
        recipes = self.plan.recipes()
        chained = self.settings.warm_start == "previous"  # one after the other: all processes share each
        together = {name: r for name, r in recipes.items() if name == GENERAL or len(recipes) == 1 or chained}
        total = sum(r.steps for r in recipes.values())
        with tqdm(total=total, desc="training", unit="step", disable=not self._shows_progress) as bar:
            for name, recipe in together.items():
                self._train(name, recipe, bar, self.processes.share)
                self.processes.wait()
            for n, (name, recipe) in enumerate((n, r) for n, r in recipes.items() if n not in together):
                if n % self.processes.count == self.processes.rank:
                    self._train(name, recipe, bar, (0, 1))

    def _train(self, name: str, recipe: Recipe, bar: Any, process: tuple[int, int]) -> None:
        bar.set_postfix_str(name)
        net = self.new_network(self.plan.spec(name), recipe.seed)
        start = self.plan.start(name)
        if start is not None:
            load_checkpoint(self.checkpoint(start), net)
        also = self.progress or (lambda _: None)
        told = lambda steps: (bar.update(steps), also(steps))  # noqa: E731
        overfit(net, self.store(name), recipe, self.checkpoint(name), told, process)

    def new_network(self, spec: NetworkSpec, seed: int) -> nn.Module:
        """Untrained, with weight norm where the paper has it."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = spec.build()
        start_from_bicubic(net)
        return (add_weight_norm(net) if spec.backbone == "wdsr" else net).to(self.device)

    def finish(self) -> None:
        """Pack the map, write the model, and give the bundle its name."""
        s, g, plan = self.settings, self.geometry, self.plan
        labels, k = plan.labels()
        experts, records = self.stored_experts(1 if s.method == "jstdo" else k)
        shares = [1.0] if s.method == "jstdo" else chunking.error_shares(plan.errors.ravel(), labels, k).tolist()
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
        """The networks as they are stored, and what storing them so costs: PSNR on their patches before and after."""
        plan, experts, records = self.plan, nn.ModuleList(), []
        trained = [name for name in plan.chosen_patches() if name != GENERAL]
        for m in range(k):
            name = f"expert-{m}" if f"expert-{m}" in trained else trained[0]  # no patch is routed to an empty chunk
            net, store = self.new_network(plan.spec(name), 0), self.store(name)
            record: dict[str, Any] = {"patches": len(store), "steps": load_checkpoint(self.checkpoint(name), net)}
            record["psnr_float32"] = round(psnr(store_error(net.eval(), store, plan.trims(name))), 4)
            as_stored(net, self.settings.weight_dtype)
            record["psnr_stored"] = round(psnr(store_error(net, store, plan.trims(name))), 4)
            experts.append(net.cpu())
            records.append(record)
        return experts, records

    def _pairs(self) -> Iterator[Any]:
        return paired_frames(self.source, self.info, self.low_resolution, self.geometry)

    @property
    def _shows_progress(self) -> bool:
        return self.progress_bar and self.processes.first

    @contextmanager
    def _bar(self, frames: Iterator[Any], what: str) -> Iterator[Iterator[Any]]:
        hidden = not self._shows_progress
        # closed at once after an error too, else it would stand before and behind its message
        with tqdm(frames, desc=what, total=self.info.frames or None, unit="frame", disable=hidden) as bar:
            yield self._counted(bar)

    def _counted(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            if self.progress is not None:
                self.progress(1)
            yield frame
