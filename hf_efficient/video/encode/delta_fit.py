"""The fit of method="delta": train what is sent of a general network, compare it with its parts, send what pays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor, nn

from hf_efficient.video.files.manifest import MODEL_FOLDER, write_short_manifest
from hf_efficient.video.networks.backbones.luma import luma_error
from hf_efficient.video.networks.delta import BIAS_STEP, ZERO_STEP, Delta, pack_delta, unpack_delta
from hf_efficient.video.networks.experts import DELTA, save_delta
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.patches import psnr

from .candidates import SAMPLES, Candidate, best, compare
from .description import describe
from .filter import filter_levels, fit_filter
from .overfit import Recipe, load_checkpoint, overfit, store_error
from .stages import Fit

EXPERT, SCALES = "expert-0", "scales"  # all may change; scales and biases alone
RATE_WEIGHT = 4.0  # times the error of bicubic enlargement for each bit of the stream
SCALES_SHARE, SCALES_RATE = 1 / 3, 3.0  # of the steps, and times the learning rate
FILTER_FINENESS = 1


def rate_penalty(price: float, delta: nn.Module) -> Tensor:
    """λ Σ log2(1 + |change| / h)."""
    assert isinstance(delta, Delta)
    return price * delta.bits()


class DeltaFit(Fit):
    """Trains the delta and, in a third of the steps, scales and biases alone; both resumable as all fits are."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.general = general_network(self.settings.scale, self.settings.network(0).num_features)
        self.identity |= {"general": self.general.digest}

    def network_bytes(self) -> int:
        """Of the general network as it is: more is sent only where it pays."""
        return self._candidate("general", self.general.spec, b"").bytes

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
        price = RATE_WEIGHT * float(self.plan.errors.mean()) / (8 * self.low_resolution.stat().st_size)
        with self.progress.training(self.settings.steps) as count:
            for name, (delta, recipe) in self.deltas().items():
                overfit(
                    delta, store, recipe, self.checkpoint(name), partial(count, name), self.processes.share,
                    loss=luma_error, penalty=partial(rate_penalty, price),
                )  # fmt: skip
                self.processes.wait()

    def finish(self) -> None:
        """Compare the candidates on whole frames, and write the bundle of the best."""
        errors = self.plan.errors
        every = max(1, len(errors) // SAMPLES)
        candidates = self.candidates(every)
        rows = compare(candidates, self.pairs(), self.info, self.device, every)
        taken = best(rows, self.low_resolution.stat().st_size, self.settings.model_bytes)
        chosen, store = candidates[taken], self.store(EXPERT)
        save_delta(self.draft / MODEL_FOLDER, chosen.config, chosen.delta)
        error = round(psnr(store_error(chosen.net.to(self.device), store, True)), 4)
        record = {"patches": len(store), "steps": self.settings.steps, "error_share": 1.0}
        record |= {"psnr_float32": error, "psnr_stored": error}
        described = vars(chosen.spec) | {"num_experts": 1, "weight_dtype": f"sent: {chosen.name}"}
        describe(
            self.draft, self.low_resolution.name, self.source, self.info, described, self.device,
            frames=len(errors), write=write_short_manifest, fit=self.record, experts=[record],
            general_patch_psnr=round(psnr(float(errors.mean(dtype=np.float64))), 4),
            candidates={"taken": chosen.name, "every": every, "rows": [
                {name: value for name, value in row.items() if name != "error"} for row in rows
            ]},
        )  # fmt: skip
        self.folder.publish(self.identity)

    def candidates(self, every: int) -> list[Candidate]:
        """From the cheapest to the dearest; the filter is fitted on every `every`-th frame."""
        scale = self.settings.scale
        blank, spec = NetworkSpec("luma_filter", scale, 1, 1), self.general.spec
        found = [self._candidate("bicubic", blank, b"")]
        fitted = fit_filter(islice(self.pairs(), 0, None, every), scale)
        fine = 2.0**-FILTER_FINENESS
        levels = [q.clamp(-127, 127).long().numpy() for q in filter_levels(fitted, ZERO_STEP * fine, BIAS_STEP * fine)]
        found.append(self._candidate("filter", blank, pack_delta([blank_filter(blank)], [levels], FILTER_FINENESS)))
        found.append(self._candidate("general", spec, b""))
        for name, (delta, _) in self.deltas().items():
            load_checkpoint(self.checkpoint(name), delta)
            packed = pack_delta([self.general.load()], [delta.levels()], delta.fineness)
            found.append(self._candidate("delta" if name == EXPERT else name, spec, packed))
        return found

    def _candidate(self, name: str, spec: NetworkSpec, delta: bytes) -> Candidate:
        """With the network as a player restores it from these bytes."""
        config: dict[str, Any] = {**vars(spec), "weight_dtype": DELTA}
        if spec == self.general.spec:
            config["general"] = self.general.digest
        net = self.general.load() if spec == self.general.spec else blank_filter(spec)
        unpack_delta(delta, [net])
        return Candidate(name, config, delta, net.to(self.device), spec)


def blank_filter(spec: NetworkSpec) -> nn.Module:
    """A filter that corrects nothing."""
    return spec.build().eval().requires_grad_(False)
