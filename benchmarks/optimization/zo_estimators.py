"""How well does each cheap perturbation point along the gradient? `python -m benchmarks.optimization.zo_estimators`

Every method trains the same network on the same batches by itself. In every step the perturbation it really made is
compared with the batch's exact gradient at the unperturbed weights: the mean cosine over the first and the second half
of training, and over all of it, and how often it is positive. SAM's own is 1 by definition; a random direction's is
sqrt(2 / (pi d)).
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.models.small_networks import SmallResNet, SmallViT
from examples import real_data
from hf_efficient.optimization.engine.perturbation import Weights, dot, global_norm
from hf_efficient.optimization.loop.batch import ClosureBatch
from hf_efficient.optimization.variants.s2sam import S2SAMVariant
from hf_efficient.optimization.variants.zosam import GuidedZOSAMVariant, ZOSAMVariant

RHO, SIZE, BATCH = 0.05, 1024, 32
VARIANTS: dict[str, Callable[[], Any]] = {
    "S2-SAM: the last gradient": S2SAMVariant,
    "ZO-SAM, m = 1": lambda: ZOSAMVariant(1, 1e-3, 1.0, 0),
    "ZO-SAM, m = 8": lambda: ZOSAMVariant(8, 1e-3, 1.0, 0),
    "guided, m = 1": lambda: GuidedZOSAMVariant(1, 1.0, 0),
    "guided, m = 2": lambda: GuidedZOSAMVariant(2, 1.0, 0),
    "guided, m = 8": lambda: GuidedZOSAMVariant(8, 1.0, 0),
}
NETWORKS: dict[str, Callable[[], Any]] = {"resnet": lambda: SmallResNet(8), "vit": lambda: SmallViT(48, 2)}


def cosines(network: str, variant: Any, epochs: int) -> list[float]:
    """Cosine of every step's perturbation with the batch's gradient."""
    torch.manual_seed(0)
    x, y = (torch.from_numpy(array[:SIZE].copy()) for array in real_data.fashion_mnist())
    x = (x[:, None].float() / 255 - 0.286) / 0.353
    net = NETWORKS[network]()
    params = list(net.parameters())
    if network == "resnet":
        optimizer: Any = torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.05)
    found = []
    for _ in range(epochs):
        for rows in torch.randperm(SIZE).split(BATCH):
            loss = lambda rows=rows: F.cross_entropy(net(x[rows]), y[rows])  # noqa: E731
            weights = Weights(params)
            batch = ClosureBatch(weights, loss)
            gradient = batch.gradient()
            before = {p: p.detach().clone() for p in params}
            with variant.perturbed(weights, batch, RHO):
                epsilon = {p: p.detach() - before[p] for p in params}
                loss().backward()
            if (size := global_norm(epsilon)) > 0:
                found.append(dot(epsilon, gradient) / (size * global_norm(gradient)))
            variant.step += 1
            optimizer.step()
            optimizer.zero_grad()
    return found


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "zo_estimators")
    made.add_argument("--epochs", type=int, default=2)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    rows = []
    for network in NETWORKS:
        weights = sum(p.numel() for p in NETWORKS[network]().parameters())
        for name, variant in tqdm(VARIANTS.items(), desc=network, leave=False):
            values = np.array(cosines(network, variant(), arguments.epochs))
            halves = [float(half.mean()) for half in np.array_split(values, 2)]
            rows.append({"network": network, "weights": weights, "method": name, "mean": float(values.mean()),
                         "first_half": halves[0], "second_half": halves[1],
                         "uphill": float((values > 0).mean())})  # fmt: skip
    head = ["network (weights)", "perturbation", "first half", "second half", "all", "steps in which it is positive"]
    cells = [
        [f"{row['network']} ({row['weights']:,})", row["method"],
         *(f"{row[key]:.3f}" for key in ("first_half", "second_half", "mean")), f"{row['uphill']:.0%}"]
        for row in rows
    ]  # fmt: skip
    write_json(arguments.output / "results.json", rows)
    write_table(arguments.output / "table.md", markdown(head, cells))


if __name__ == "__main__":
    main()
