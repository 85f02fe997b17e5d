"""Space: train a network with fewer weights, towards flatter minima, in seconds, on real handwritten digits."""

from collections.abc import Callable
from functools import lru_cache, partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr
import torch
from peft import get_peft_model
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from hf_efficient import S2SAM, SAM, ZOSAM, BiDSTConfig, sharpness, train_sparsely
from hf_efficient.files.temporary import work_folder
from hf_efficient.methods import SPARSITY, settings_of
from hf_efficient.optimization.loop.optimizers import PerturbingOptimizer
from hf_efficient.optimization.sharpness import loss_along, plot_landscape
from hf_efficient.space import (
    LONGEST_QUEUE,
    Deadline,
    guarded,
    in_one_thread,
    launch_options,
    number,
    one_of,
    own_folder,
    refusal,
    some_of,
    whole,
)

PLAIN, S2, ZO, FULL = "plain", "S2-SAM", "ZO-SAM, guided", "SAM"
PASSES = {PLAIN: "1 gradient", S2: "1 gradient", ZO: "1 gradient, 2 losses", FULL: "2 gradients"}
TRAINED, WIDTH, STEPS, BATCH = 500, 128, 600, 50  # images, neurons, steps, images per step
DENSE, SPARSITIES = "all weights", {"all weights": 0.0, "80 % pruned": 0.8, "90 % pruned": 0.9, "95 % pruned": 0.95}
DISTANCES = [t / 10 for t in range(-15, 16)]
MOST_SECONDS = 300  # of work for all networks, on a busy machine
SHARPNESS_RHO, SIDE = 0.1, 8  # distance; pixels of a digit

INTRODUCTION = """
# What can training save?

The same small network learns 500 real **handwritten digits**, some of them labelled wrongly, once for each box that
you tick: plainly, or towards **flat minima**. If most weights are pruned, it also has to find **which ones to keep**.
Everything is trained when you press the button, and tested on 1,297 digits that no run has seen.
"""
LAUNCH_OPTIONS = launch_options(__file__, "violet", largest_upload=0)
PROGRESS = gr.Progress()  # Gradio finds it as the default of an argument


class Digits(NamedTuple):
    """Images (N, 64) in [0, 1] and labels (N,)."""

    x: Tensor
    y: Tensor


class Run(NamedTuple):
    """A trained network, the share of new digits it classifies correctly, its sharpness and its trainable weights."""

    model: nn.Module
    right: float
    flatness: float
    weights: int


@lru_cache(maxsize=1)
def digits() -> tuple[Digits, Digits]:
    """Training and test part."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.data / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]
    return Digits(x[:TRAINED], y[:TRAINED]), Digits(x[TRAINED:], y[TRAINED:])


def mislabel(data: Digits, share: float, seed: int) -> Digits:
    """Give a share of the images another label."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(data.y), generator=generator)[: round(share * len(data.y))]
    y = data.y.clone()
    y[wrong] = (y[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
    return Digits(data.x, y)


def loss_of(model: nn.Module, batch: Digits) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def make_optimizer(method: str, model: nn.Module, rho: float) -> torch.optim.Optimizer:
    """SGD with momentum, by itself or inside a method."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    if method == PLAIN:
        return torch.optim.SGD(parameters, **settings)
    if method == ZO:
        return ZOSAM(parameters, torch.optim.SGD, rho, guided=True, **settings)
    return {S2: S2SAM, FULL: SAM}[method](parameters, torch.optim.SGD, rho, **settings)


def train(
    method: str,
    rho: float,
    wrong: float,
    sparsity: float,
    topology: str,
    seed: int,
    step: Callable[[], object] = lambda: None,
) -> Run:
    """One network, from the same start and on the same batches as all others of this seed; `step` is called in each."""
    data, test = mislabel(digits()[0], wrong, seed), digits()[1]
    torch.manual_seed(seed)
    model: Any = nn.Sequential(
        nn.Linear(SIDE**2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )
    if sparsity:
        sparse = BiDSTConfig(
            sparsity=sparsity, topology=topology, target_modules=["0", "2"], backend="dense", seed=seed,
            **settings_of(SPARSITY, topology, init="random", update_interval=20),
        )  # fmt: skip
        model = get_peft_model(model, sparse)
    optimizer = make_optimizer(method, model, rho)
    if sparsity:
        train_sparsely(model, optimizer, STEPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    order = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        step()
        rows = torch.randint(len(data.y), (BATCH,), generator=order)
        batch = Digits(data.x[rows], data.y[rows])
        if isinstance(optimizer, PerturbingOptimizer):
            optimizer.perturb(partial(loss_of, model, batch))
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        right = float((model(test.x).argmax(1) == test.y).float().mean())
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Run(model, right, sharpness(model, [data], SHARPNESS_RHO, loss_of=loss_of), weights)


def compare(
    methods: list[str], rho: float, wrong: int, pruned: str, topology: str, seed: int, progress: gr.Progress = PROGRESS
) -> tuple[Image.Image, str]:
    """What the page shows: the loss around each minimum, and the figures as HTML."""
    return in_one_thread(_compare, methods, rho, wrong, pruned, topology, seed, progress)


def _compare(
    methods: object, rho: object, wrong: object, pruned: object, topology: object, seed: object, progress: gr.Progress
) -> tuple[Image.Image, str]:
    deadline = Deadline(MOST_SECONDS, "Tick fewer ways to train.")
    named = some_of("Train", methods, list(PASSES))
    if not named:
        raise refusal("Tick at least one way to train.")
    distance = number("Distance of the perturbation", rho, 0, 1)
    share = number("Digits labelled wrongly, percent", wrong, 0, 60) / 100
    sparsity = SPARSITIES[one_of("Weights", pruned, SPARSITIES)]
    chosen, start = one_of("Topology", topology, SPARSITY.names), whole("Seed", seed, 0, 10**6)
    runs = {}
    for method in progress.tqdm(named, desc="training", unit="network"):
        runs[method] = train(method, distance, share, sparsity, chosen, start, deadline)
    data = mislabel(digits()[0], share, start)
    curves = {method: loss_along(run.model, [data], DISTANCES, loss_of=loss_of) for method, run in runs.items()}
    with work_folder(own_folder()) as folder:
        path = f"{folder}/landscape.png"
        plot_landscape(curves, DISTANCES, path)
        with Image.open(path) as image:
            drawn = image.convert("RGB")
    return drawn, table(runs)


def table(runs: dict[str, Run]) -> str:
    """The figures, best in bold."""
    best = max(run.right for run in runs.values())
    rows = ""
    for method, run in runs.items():
        right = f"{run.right:.1%}"
        rows += (
            f"<tr><td>{escape(method)}</td><td>{f'<b>{right}</b>' if run.right == best else right}</td>"
            f"<td>{run.flatness:.3f}</td><td>{run.weights:,}</td><td>{PASSES[method]}</td></tr>"
        )
    head = "<th>trained</th><th>correct on new digits</th><th>sharpness</th><th>weights</th><th>cost of a step</th>"
    note = f"Sharpness: how much a step of length {SHARPNESS_RHO} uphill adds to the training loss."
    return f'<table class="figures"><tr>{head}</tr>{rows}</table><p class="note">{note}</p>'


def build_demo() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="What can training save?") as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=4):
                methods = gr.CheckboxGroup(
                    [PLAIN, S2, ZO, FULL], value=[PLAIN, S2, FULL], label="Train", elem_id="methods"
                )
                rho = gr.Slider(0.0, 1.0, 0.2, step=0.05, label="Distance of the perturbation, ρ", elem_id="rho")
                wrong = gr.Slider(0, 60, 40, step=10, label="Digits labelled wrongly, percent", elem_id="wrong")
                pruned = gr.Radio(list(SPARSITIES), value=DENSE, label="Weights", elem_id="pruned")
                topology = gr.Dropdown(
                    sorted(SPARSITY.names), value="bidst", label="Which weights to drop and grow", elem_id="topology"
                )  # fmt: skip
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=10**6, elem_id="seed")
                button = gr.Button("Train", variant="primary", elem_id="train")
            with gr.Column(scale=7):
                landscape = gr.Image(
                    label="Loss around the minimum", show_label=False, format="png", interactive=False,
                    buttons=[], elem_id="landscape", elem_classes="space-chart",
                )  # fmt: skip
                figures = gr.HTML(elem_id="figures", elem_classes="space-results", padding=True)
        button.click(
            compare,
            [methods, rho, wrong, pruned, topology, seed],
            [landscape, figures],
            api_name="compare",
            concurrency_limit=1,
            show_progress_on=figures,
        )
    return guarded(demo, methods, rho, wrong, pruned, topology, seed)


demo = build_demo()

if __name__ == "__main__":
    demo.queue(max_size=LONGEST_QUEUE).launch(**LAUNCH_OPTIONS)
