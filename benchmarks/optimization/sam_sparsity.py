"""Does S2-SAM gain more, the sparser the network? `python -m benchmarks.optimization.sam_sparsity`

500 images of Fashion-MNIST, static random masks, with and without wrong labels; an MLP for 40 epochs, long enough that
it knows its training set by heart, where it can, and once for 160, as long as in the paper. Beside S2-SAM, which moves
active weights alone, "all weights" also moves the pruned ones along their gradient, as the code published for the paper
does; "quarter rate" is S2-SAM at the lowest of plain training's rates. A dense ResNet with BatchNorm, of which other
tables tell more, stands there for how the dials are chosen.

Every method has one dial with four values: plain training its learning rate, the others rho at the first of the rates.
The dial, and for "stopped" the epoch, are chosen on validation images whose labels are as wrong as those of the
training images; two seeds choose the dial, five others are tested on clean labels. (The MLP's rate was set after a look
at validation images of one of the two.) A seed fixes images, wrong labels, masks, first weights and order: methods are
compared in pairs. Every run is stored as soon as it is done.
"""

import argparse
import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import stored_runs, write_table
from benchmarks.harness.tables import gain, markdown
from benchmarks.models.small_networks import SmallResNet
from benchmarks.optimization.sam_tasks import accuracy, fixed_masks, images, loss_of
from benchmarks.sparsity.tasks import mlp
from hf_efficient import S2SAM, SAM
from hf_efficient.optimization.engine.batch_norm import recalibrate_batch_norm

RHOS, RATES = (0.1, 0.3, 0.8, 2.0), (1.0, 0.25, 0.5, 2.0)
#: Row -> optimizer from (parameters, base class, rho, base arguments); plain training has none.
METHODS: dict[str, Callable[..., Any] | None] = {
    "plain": None, "sam": SAM, "s2sam": S2SAM, "s2sam, quarter rate": S2SAM,
    "s2sam, all weights": functools.partial(S2SAM, perturb_pruned=True),
}  # fmt: skip
SIZE, HELD_OUT, BATCH = 500, 1000, 25
PAPER_EPOCHS = 160
RATE = {"mlp": 0.03, "resnet": 0.1}
EVERY = 2  # epochs between looks at the validation images
TUNING_SEEDS, WAYS = (1000, 1001), ("end", "stopped")


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Args:
        network: "mlp" (270,000 weights) or "resnet" (20,000).
        sparsity: share of its inner weights that are inactive.
        noise: share of wrong labels.
        epochs: passes over the training images.
    """

    network: str
    sparsity: float
    noise: float
    epochs: int = 40

    def __str__(self) -> str:
        length = f", {self.epochs} epochs" if self.epochs == PAPER_EPOCHS else ""
        return f"{self.network}, {self.sparsity:.0%} sparse, {self.noise:.0%} wrong{length}"


SETTINGS = {
    str(one): one
    for one in (
        *(Setting("mlp", sparsity, 0.4) for sparsity in (0.0, 0.8, 0.95, 0.98)),
        Setting("resnet", 0.0, 0.4, epochs=20),
        *(Setting("mlp", sparsity, 0.0) for sparsity in (0.0, 0.8, 0.95, 0.98)),
        Setting("mlp", 0.95, 0.0, PAPER_EPOCHS),
    )
}


class Run(NamedTuple):
    """One training."""

    setting: str
    method: str
    dial: float
    seed: int

    @property
    def key(self) -> str:
        return "|".join(map(str, self))


Runs = dict[str, dict[str, float]]


def network(setting: Setting, seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The network of a seed, and the masks of its inner weights."""
    torch.manual_seed(seed)
    if setting.network == "resnet":
        resnet = SmallResNet(8)
        return resnet, fixed_masks(resnet, setting.sparsity, seed)
    net = nn.Sequential(nn.Flatten(), mlp(784, 256, 256, 10))
    return net, fixed_masks(net, setting.sparsity, seed, inner=("1.0.weight", "1.2.weight"))


def data(noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and validation images of a seed, as many labels of both wrong."""
    x, y, _, _ = images()
    rng = np.random.default_rng(seed)
    picked = torch.from_numpy(rng.permutation(len(x))[: SIZE + HELD_OUT])
    labels = y[picked].clone()
    wrong = torch.from_numpy(rng.random(len(picked)) < noise)
    labels[wrong] = (labels[wrong] + torch.from_numpy(rng.integers(1, 10, int(wrong.sum())))) % 10
    return x[picked[:SIZE]], labels[:SIZE], x[picked[SIZE:]], labels[SIZE:]


def train(run: Run) -> dict[str, float]:
    """Train, and look at the validation images on the way.

    Returns:
        Percent right of the validation images (of the test images, too, unless the seed is one that tunes) at the end,
        and where the validation images said to stop; and of the training images at the end.
    """
    setting, method = SETTINGS[run.setting], METHODS[run.method]
    x, y, held_x, held_y = data(setting.noise, run.seed)
    net, masks = network(setting, run.seed)
    factor = run.dial if method is None else 0.25 if "quarter" in run.method else 1.0
    rate, sgd = RATE[setting.network] * factor, torch.optim.SGD
    make: Any = sgd if method is None else functools.partial(method, base_optimizer=sgd, rho=run.dial)
    optimizer = make(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    steps, order = setting.epochs * (SIZE // BATCH), np.random.default_rng(run.seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, cycle_momentum=False)
    best, stopped = -1.0, net
    for epoch in range(1, setting.epochs + 1):
        for rows in torch.from_numpy(order.permutation(SIZE)).split(BATCH):
            loss = functools.partial(loss_of, net.train(), x[rows], y[rows])
            if method is not None:
                optimizer.perturb(loss)
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                for p, mask in masks:  # not the gradients, which "all weights" follows
                    p.mul_(mask)
        if epoch % EVERY == 0:
            recalibrate_batch_norm(net, x.split(100))
            now = accuracy(net.eval(), held_x, held_y)
            if now > best:
                best, stopped = now, copy.deepcopy(net)
    found = {"training": accuracy(net, x, y)}
    for way, one in zip(WAYS, (net, stopped), strict=True):
        found[f"validation, {way}"] = accuracy(one.eval(), held_x, held_y)
        if run.seed not in TUNING_SEEDS:
            found[f"test, {way}"] = accuracy(one, *images()[2:])
    return {name: 100 * value for name, value in found.items()}


def dials(method: str) -> tuple[float, ...]:
    """Values that are tried."""
    return RATES if METHODS[method] is None else RHOS


def chosen(runs: Runs, setting: str, method: str, way: str) -> float:
    """The dial of the best mean on validation images; KeyError where runs are missing."""

    def quality(dial: float) -> float:
        return mean(runs[Run(setting, method, dial, seed).key][f"validation, {way}"] for seed in TUNING_SEEDS)

    return max(dials(method), key=quality)


def methods_of(setting: str) -> list[str]:
    """Those that differ: without a mask all weights move anyway."""
    return [m for m in METHODS if SETTINGS[setting].sparsity or "all weights" not in m]


def work(runs: Runs, settings: list[str], wanted: list[str], seeds: int) -> Iterator[Run]:
    """All runs, a setting after the other: tuning, then seed by seed every dial that is chosen."""
    for setting in settings:
        methods = [m for m in methods_of(setting) if m in wanted]
        for method, seed in itertools.product(methods, TUNING_SEEDS):
            yield from (Run(setting, method, dial, seed) for dial in dials(method))
        for seed, method in itertools.product(range(seeds), methods):
            for dial in sorted({chosen(runs, setting, method, way) for way in WAYS}):
                yield Run(setting, method, dial, seed)


def table(runs: Runs, seeds: int) -> str:
    """Markdown: percent right and paired gains over plain training, at the end and where validation says to stop.

    A row is of the seeds, up to that many, which both have.
    """
    rows = []
    for setting, method in ((s, m) for s in SETTINGS for m in methods_of(s)):
        try:
            picked = {(m, way): chosen(runs, setting, m, way) for m in (method, "plain") for way in WAYS}
        except KeyError:  # not yet chosen
            continue
        keys = {pick: [Run(setting, pick[0], dial, seed).key for seed in range(seeds)] for pick, dial in picked.items()}
        there = [at for at in range(seeds) if all(names[at] in runs for names in keys.values())]
        if len(there) < 2:  # no interval of fewer
            continue
        of = {pick: [runs[names[at]] for at in there] for pick, names in keys.items()}
        row = [setting, method, str(len(there)), f"{mean(one['training'] for one in of[method, 'end']):.1f}"]
        for way in WAYS:
            ours, plain = ([one[f"test, {way}"] for one in of[m, way]] for m in (method, "plain"))
            gaps = [a - b for a, b in zip(ours, plain, strict=True)]
            over_plain = "" if method == "plain" else gain(gaps, digits=1)
            row += [f"{picked[method, way]:g}", f"{mean(ours):.1f}", over_plain]
        rows.append(row)
    head = ["setting", "method", "seeds", "training %"]
    return markdown([*head, *(f"{name}, {way}" for way in WAYS for name in ("dial", "test %", "gain"))], rows)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "sam_sparsity")
    made.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    made.add_argument("--seeds", type=int, default=5)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    asked = {"settings": arguments.settings, "wanted": arguments.methods, "seeds": arguments.seeds}
    runs = stored_runs(arguments.output, functools.partial(work, **asked), train, 2)
    write_table(arguments.output / "table.md", table(runs, arguments.seeds))


if __name__ == "__main__":
    main()
