"""The fit of method="delta": train what is sent of a general network, compare it with its parts, send what pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_efficient.video.files.manifest import MODEL_FOLDER, write_short_manifest
from hf_efficient.video.networks.delta import BIAS_STEP, ZERO_STEP, Delta, pack_delta, unpack_delta
from hf_efficient.video.networks.experts import DELTA, save_delta
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.patches import psnr

from .candidates import SAMPLES, Candidate, best, compare
from .description import describe
from .filter import filter_levels, fit_filter
from .losses import LOSSES, loss_of_bicubic
from .overfit import Recipe, load_checkpoint, overfit, store_error
from .stages import Fit

EXPERT, SCALES = "expert-0", "scales"  # all may change; scales and biases alone
RATE_WEIGHT = 4.0  # times the error of bicubic enlargement for each bit of the stream
SCALES_SHARE, SCALES_RATE = 1 / 3, 3.0  # of the steps, and times the learning rate
FINENESS, FILTER_FINENESS = 0, 1


def rate_penalty(price: float, delta: nn.Module, known: Sequence[np.ndarray] | None = None) -> Tensor:
    """λ Σ log2(1 + |change| / h), of what is not `known` already."""
    assert isinstance(delta, Delta)
    return price * delta.bits(known)


class DeltaFit(Fit):
    """Trains the delta and, in a third of the steps, scales and biases alone; both resumable as all fits are."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.general = general_network(self.settings.scale, self.settings.network(0).num_features)
        self.identity |= {"general": self.general.digest}
        self.loss = LOSSES[self.settings.loss]

    def network_bytes(self) -> int:
        """Of the general network as it is: more is sent only where it pays."""
        return self.candidate("general", self.general.spec, b"").bytes

    def deltas(self) -> dict[str, tuple[Delta, Recipe]]:
        """What is trained, by its name."""
        all_steps = self.plan.recipes()[EXPERT]
        of_scales = max(1, round(all_steps.steps * SCALES_SHARE))
        base = self.general.load().to(self.device)
        scales = replace(all_steps, steps=of_scales, learning_rate=min(1.0, all_steps.learning_rate * SCALES_RATE))
        rest = replace(all_steps, steps=max(1, all_steps.steps - of_scales))
        return {EXPERT: (Delta(base), rest), SCALES: (Delta(base, weights=False), scales)}

    def train(self) -> None:
        """Train with the rate in the loss."""
        store = self.store(EXPERT)
        with self.progress.training(self.settings.steps) as count:
            for name, (delta, recipe) in self.deltas().items():
                overfit(
                    delta, store, recipe, self.checkpoint(name), partial(count, name), self.processes.share,
                    loss=self.loss, penalty=partial(rate_penalty, self.bit_price),
                )  # fmt: skip
                self.processes.wait()

    @property
    def bit_price(self) -> float:
        """λ of training: loss for a bit."""
        of_bicubic = float(self.plan.errors.mean())
        if self.settings.loss != "mse":  # which is known of all patches
            trim = self.plan.trims(EXPERT)
            of_bicubic = loss_of_bicubic(self.loss, self.store(EXPERT), self.settings.scale, trim)
        return RATE_WEIGHT * of_bicubic / (8 * self.low_resolution.stat().st_size)

    def finish(self) -> None:
        """Compare the candidates on whole frames, and write the bundle of the best."""
        errors = self.plan.errors
        every = max(1, len(errors) // self.samples)
        candidates = self.candidates(every)
        rows = compare(candidates, self.pairs(), self.info, self.device, every, self.loss)
        taken = best(rows, self.low_resolution.stat().st_size, self.settings.model_bytes)
        chosen = candidates[taken]
        save_delta(self.draft / MODEL_FOLDER, chosen.config, chosen.delta, chosen.packed)
        described = vars(chosen.spec) | {"num_experts": len(chosen.nets), "weight_dtype": f"sent: {chosen.name}"}
        describe(
            self.draft, self.low_resolution.name, self.source, self.info, described, self.device,
            frames=len(errors), write=write_short_manifest, fit=self.record, experts=self.expert_records(chosen),
            general_patch_psnr=round(psnr(float(errors.mean(dtype=np.float64))), 4),
            candidates={"taken": chosen.name, "every": every, **chosen.record, "rows": [
                {name: value for name, value in row.items() if name != "error"} for row in rows
            ]},
        )  # fmt: skip
        self.folder.publish(self.identity)

    @property
    def samples(self) -> int:
        """Frames that candidates are compared on, spread over the video."""
        return SAMPLES

    def expert_records(self, chosen: Candidate) -> list[dict[str, Any]]:
        """What bundle.json says of each network."""
        return [self.expert_record(chosen.nets[0], EXPERT, self.settings.steps, 1.0)]

    def expert_record(self, net: nn.Module, store: str, steps: int, share: float) -> dict[str, Any]:
        """The record of a network that plays patches like those of a store, with a share of the error."""
        patches = self.store(store)
        error = round(psnr(store_error(net.to(self.device), patches, True)), 4)
        record = {"patches": len(patches), "steps": steps, "error_share": round(share, 4)}
        return record | {"psnr_float32": error, "psnr_stored": error}

    def candidates(self, every: int) -> list[Candidate]:
        """From the cheapest to the dearest; the filter is fitted on every `every`-th frame."""
        scale = self.settings.scale
        blank, spec = NetworkSpec("luma_filter", scale, 1, 1), self.general.spec
        found = [self.candidate("bicubic", blank, b"")]
        fitted = fit_filter(islice(self.pairs(), 0, None, every), scale)
        fine = 2.0**-FILTER_FINENESS
        levels = [q.clamp(-127, 127).long().numpy() for q in filter_levels(fitted, ZERO_STEP * fine, BIAS_STEP * fine)]
        found.append(self.candidate("filter", blank, pack_delta([blank_filter(blank)], [levels], FILTER_FINENESS)))
        found.append(self.candidate("general", spec, b""))
        for name in self.deltas():
            packed = pack_delta([self.general.load()], [self.levels(name)], FINENESS)
            found.append(self.candidate("delta" if name == EXPERT else name, spec, packed))
        return found

    def levels(self, name: str) -> list[np.ndarray]:
        """What was trained of a delta, in whole steps."""
        delta = self.deltas()[name][0]
        load_checkpoint(self.checkpoint(name), delta)
        return delta.levels()

    def candidate(self, name: str, spec: NetworkSpec, delta: bytes) -> Candidate:
        """With the network as a player restores it from these bytes."""
        config: dict[str, Any] = {**vars(spec), "weight_dtype": DELTA}
        if spec == self.general.spec:
            config["general"] = self.general.digest
        net = self.general.load() if spec == self.general.spec else blank_filter(spec)
        unpack_delta(delta, [net])
        return Candidate(name, config, delta, [net.to(self.device)], spec)


def blank_filter(spec: NetworkSpec) -> nn.Module:
    """A filter that corrects nothing."""
    return spec.build().eval().requires_grad_(False)
