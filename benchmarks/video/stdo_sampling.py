"""What JSTDO's one network should be trained on, and what Adam remembers: `python -m benchmarks.video.stdo_sampling`.

Gain over bicubic of one network at equal steps, mean over seeds, for several samples of the patches and several β2 of
Adam. Two samples joined by "then" share the steps: the second half starts from the network of the first, with a new
optimizer and learning rate, as EMT's does. The low-resolution stream is lossless. Resumable.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from benchmarks.video.stdo_baselines import EMT_SHARE, hardest
from benchmarks.video.stdo_prepared import Prepared
from hf_efficient.video.encode.fit import Fit
from hf_efficient.video.encode.overfit import Recipe
from hf_efficient.video.encode.training_plan import GENERAL, TrainingPlan
from hf_efficient.video.methods.jstdo import JOINT_CHUNKS, joint_sample
from hf_efficient.video.methods.stdo import equal_count
from hf_efficient.video.settings import FitSettings

# (n,) errors of all patches -> numbers of those to train on
Sample = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def everything(errors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.arange(errors.size)


def joint(errors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return joint_sample(equal_count(errors, JOINT_CHUNKS), JOINT_CHUNKS, rng)


def hard_share(share: float) -> Sample:
    return lambda errors, rng: hardest(errors, share)


def in_proportion(errors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many draws as there are patches."""
    return rng.choice(errors.size, errors.size, p=errors / errors.sum(dtype=np.float64))


SAMPLES: dict[str, tuple[Sample, ...]] = {
    "all (awDNN)": (everything,),
    "all, then the hardest fifth (EMT-style)": (everything, hard_share(EMT_SHARE)),
    "JSTDO": (joint,),
    "JSTDO, then JSTDO": (joint, joint),
    "JSTDO, then the hardest half": (joint, hard_share(0.5)),
    "the hardest half": (hard_share(0.5),),
    "drawn in proportion to error": (in_proportion,),
}


def fit_on(samples: tuple[Sample, ...], beta: float) -> type[Fit]:
    """A Fit of one network that is trained on one sample, or on two in turn, with β2 = beta."""

    class Sampled(TrainingPlan):
        def chosen_patches(self) -> dict[str, np.ndarray]:
            errors, rng = self.errors.ravel().astype(float), np.random.default_rng(self.settings.seed)
            most = self.settings.max_patches
            names = ["expert-0"] if len(samples) == 1 else [GENERAL, "expert-0"]
            return {
                name: np.sort(rng.permutation(sample(errors, rng))[:most])
                for name, sample in zip(names, samples, strict=True)
            }

        def recipes(self) -> dict[str, Recipe]:
            return {name: replace(r, betas=(r.betas[0], beta)) for name, r in super().recipes().items()}

    class SampledFit(Fit):
        plan_class = Sampled

    return SampledFit


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "stdo_sampling", threads=True)
    made.add_argument("--clip", default="carphone_pristine.mp4")
    made.add_argument("--scale", type=int, default=2)
    made.add_argument("--samples", nargs="+", default=list(SAMPLES), choices=list(SAMPLES))
    made.add_argument("--betas", nargs="+", type=float, default=[0.999, 0.95], help="of Adam's second moment")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--features", type=int, default=12)
    made.add_argument("--steps", type=int, default=500)
    made.add_argument("--batch-size", type=int, default=4)
    made.add_argument("--every", type=int, default=5, help="measure on every N-th frame")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)

    names = ("clip", "scale", "features", "steps", "batch_size", "every")
    results = Rows(arguments.output / "results.json", arguments, names)
    record_run(arguments.output)
    for seed in arguments.seeds:
        measure(seed, results, arguments)
    text = table(results)
    write_table(arguments.output / "table.md", text)


def measure(seed: int, results: Rows, arguments: argparse.Namespace) -> None:
    """All rows of one seed that are not there yet."""
    rows = [(name, beta) for beta in arguments.betas for name in arguments.samples]
    missing = [(name, beta) for name, beta in rows if f"{name} / {beta} / {seed}" not in results.rows]
    if not missing:
        return
    settings = FitSettings(
        method="jstdo", scale=arguments.scale, num_features=arguments.features, steps=arguments.steps,
        batch_size=arguments.batch_size, lr_quality=0, seed=seed,
    )  # fmt: skip
    kinds = {name: (fit_on(SAMPLES[name], beta), {"method": "jstdo"}) for name, beta in missing}
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(fetch(arguments.clip), settings, kinds, Path(folder), arguments.every)
        for name, beta in missing:
            row = prepared.run(name, fit_on(SAMPLES[name], beta), settings)
            results.add(f"{name} / {beta} / {seed}", row)


def table(results: Rows) -> str:
    """Mean gain over bicubic and its standard deviation over seeds, a column for each β2."""
    gains: dict[str, dict[str, list[float]]] = {}
    for key, row in results.rows.items():
        name, beta, _ = key.split(" / ")
        gains.setdefault(name, {}).setdefault(beta, []).append(row["psnr"] - row["bicubic"])
    betas = sorted({beta for line in gains.values() for beta in line}, reverse=True)

    def cell(values: list[float]) -> str:
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):.2f}{spread}" if values else ""

    rows = [[name, *(cell(line.get(beta, [])) for beta in betas)] for name, line in gains.items()]
    return markdown(["trained on", *(f"β2 = {beta}" for beta in betas)], rows)


if __name__ == "__main__":
    main()
