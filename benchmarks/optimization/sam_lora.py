"""SAM with LoRA: factors or the merged weight? `python -m benchmarks.optimization.sam_lora`

LoRA on the top layer of MiniLM-L6 and a head, 256 posts of 20 Newsgroups, with and without wrong labels. On validation
posts with as many wrong labels as the training posts have, and one seed, the plain run chooses its learning rate among
four; every other method takes it and chooses rho among four. Then `--seeds` new seeds are tested on clean labels.
A seed fixes posts, wrong labels, first weights and order, so that methods are compared in pairs. Every run is stored as
soon as it is done: the same command goes on where it was stopped.
"""

import argparse
import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.intervals import half_interval
from benchmarks.harness.options import common_parser
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.models.minilm_top import MiniLMTop, hidden_states
from hf_efficient import S2SAM, SAM

RATES, RHOS = (1e-3, 2e-3, 4e-3, 8e-3), (0.025, 0.05, 0.1, 0.2)
METHODS = ("plain", "sam", "sam, merged", "s2sam", "s2sam, merged")
NOISES = (0.4, 0.0)
SIZE, EPOCHS, BATCH, HELD_OUT, TUNING_SEED = 256, 6, 16, 500, 1000


def network(classes: int) -> Any:
    """LoRA of rank 8 on all six linear layers of the top layer of MiniLM; the head trains as a whole."""
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=r"layers\..*(query|key|value|dense)", modules_to_save=["head"]
    )
    return get_peft_model(MiniLMTop(classes, 1), config)  # type: ignore[arg-type]


def data(noise: float, seed: int, tuning: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training posts of a seed with wrong labels; validation posts with as many, or test posts without."""
    x, y, test_x, test_y = hidden_states("newsgroups", 1)
    rng, classes = np.random.default_rng(seed), int(y.max()) + 1
    picked, y = rng.permutation(len(x))[: SIZE + HELD_OUT], y.clone()
    wrong = torch.from_numpy(picked[rng.random(len(picked)) < noise])
    y[wrong] = (y[wrong] + torch.from_numpy(rng.integers(1, classes, len(wrong)))) % classes
    chosen, held_out = picked[:SIZE], picked[SIZE:]
    return (x[chosen], y[chosen], x[held_out], y[held_out]) if tuning else (x[chosen], y[chosen], test_x, test_y)


def train_and_test(noise: float, method: str, rate: float, rho: float, seed: int, tuning: bool) -> dict[str, float]:
    """One run: accuracy on validation posts if tuning, else on test posts."""
    x, y, other_x, other_y = data(noise, seed, tuning)
    torch.manual_seed(seed)
    net = network(int(y.max()) + 1).train()
    params, (name, _, merged) = [p for p in net.parameters() if p.requires_grad], method.partition(", ")
    if name == "plain":
        optimizer: Any = torch.optim.AdamW(params, lr=rate)
    else:
        cls = {"sam": SAM, "s2sam": S2SAM}[name]
        optimizer = cls(params, torch.optim.AdamW, rho=rho, lr=rate, merged=net if merged else None)
    steps, order, start = EPOCHS * (SIZE // BATCH), np.random.default_rng(seed), time.perf_counter()
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        if step % (SIZE // BATCH) == 0:
            shuffled = torch.from_numpy(order.permutation(SIZE)).split(BATCH)
        rows = shuffled[step % (SIZE // BATCH)]
        loss = functools.partial(loss_of, net, x[rows], y[rows])
        if name != "plain":
            optimizer.perturb(loss)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    seconds = time.perf_counter() - start
    return {"accuracy": accuracy(net.eval(), other_x, other_y), "seconds": round(seconds, 2)}


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((torch.cat([net(part).argmax(1) for part in x.split(250)]) == y).float().mean())


def key(noise: float, method: str, rate: float, rho: float, seed: int, tuning: bool) -> str:
    return "|".join(map(str, (noise, method, rate, rho, seed, "tuning" if tuning else "test")))


def chosen(runs: dict[str, Any], noise: float, method: str) -> tuple[float, float]:
    """Rate and rho of the highest validation accuracy; the first of equals."""
    rate = max(RATES, key=lambda lr: runs[key(noise, "plain", lr, 0.0, TUNING_SEED, True)]["accuracy"])
    if method == "plain":
        return rate, 0.0
    return rate, max(RHOS, key=lambda rho: runs[key(noise, method, rate, rho, TUNING_SEED, True)]["accuracy"])


def work(runs: dict[str, Any], noises: list[float], seeds: int) -> Iterator[tuple[float, str, float, float, int, bool]]:
    """Runs in their order: what a later one is chosen by is done before it."""
    for noise in noises:
        for rate in RATES:
            yield noise, "plain", rate, 0.0, TUNING_SEED, True
        for method in METHODS[1:]:
            for rho in RHOS:
                yield noise, method, chosen(runs, noise, "plain")[0], rho, TUNING_SEED, True
        for seed in range(seeds):
            for method in METHODS:
                yield noise, method, *chosen(runs, noise, method), seed, False


def table(runs: dict[str, Any], noises: list[float], seeds: int) -> str:
    """Markdown: accuracy, and the paired gain over the plain run."""
    rows = []
    for noise in noises:
        for method in METHODS:
            rate, rho = chosen(runs, noise, method)
            mine = [runs[key(noise, method, rate, rho, seed, False)]["accuracy"] for seed in range(seeds)]
            plain = [runs[key(noise, "plain", rate, 0.0, seed, False)]["accuracy"] for seed in range(seeds)]
            gaps = [100 * (a - b) for a, b in zip(mine, plain, strict=True)]
            gain = "" if method == "plain" else f"{np.mean(gaps):+.1f} ± {half_interval(gaps):.1f}"
            rows.append([f"{noise:.0%}", method, f"{rate:g}", f"{rho:g}" if rho else "", f"{100 * np.mean(mine):.1f}",
                         gain])  # fmt: skip
    head = ["wrong labels", "method", "rate", "rho", "accuracy %", "gain (95 % interval)"]
    return markdown(head, rows)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "sam_lora")
    made.add_argument("--noises", type=float, nargs="+", default=list(NOISES), help="shares of wrong labels")
    made.add_argument("--seeds", type=int, default=5)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    path = arguments.output / "runs.json"
    runs: dict[str, Any] = read_json(path, {})
    record_run(arguments.output)
    for run in work(runs, arguments.noises, arguments.seeds):
        if key(*run) not in runs:
            runs[key(*run)] = train_and_test(*run)
            write_json(path, runs)
            print(key(*run), runs[key(*run)], flush=True)
    write_table(arguments.output / "table.md", table(runs, arguments.noises, arguments.seeds))


if __name__ == "__main__":
    main()
