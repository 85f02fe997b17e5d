"""What dropping copies of patches before the encoder saves, and changes.

`python -m benchmarks.representation.copied_patches`; `--quick` takes a minute. On a busy machine `--clock cpu` with
OMP_NUM_THREADS=1 counts the process's own time instead of the wall's. A run that was stopped goes on where it was.

`TokenPrunerConfig(merge_copies=...)`, the rule of PixelPrune, on drawn pages, tables and screens, on pages as JPEG and
sensors spoil them, and on photographs. Three parts:

**shares**: cells dropped of six pictures of each kind, by tolerance, for the cells of Qwen2-VL and Qwen2.5-VL (28
pixels) and of Qwen3-VL (32). Beside them the limit: all cells that equal any other of the picture, wherever it is.

**speed**: encoder, prefill and both added up, all patches against copies dropped, in turn in one process; and the time
of looking for copies. Models of the three families with random weights and fewer layers.

**outputs**: how far the logits after the prompt move, relative to their length, when copies are dropped, with and
without proportional attention; when as many tokens are kept at random, or evenly. With random weights this tells how
far the computation moves, nothing of right or wrong answers.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.harness.timing import CLOCKS, Around, Clock, Job, median_ms, ratio, time_in_turns
from benchmarks.models.scaled_qwen import IMAGE, KINDS, build
from benchmarks.representation.drawn_pages import PICTURES
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.maths.copies import NOTHING, copied_from
from hf_efficient.representation.vlm.families.qwen2_vl import ROUNDING

LEVEL = 1 / 255
TOLERANCES = (0.0, 4 * LEVEL, 16 * LEVEL)
PARTS = ("encoder", "prefill", "both")
TIMED = ("page of text", "table", "screen", "photograph")


def named(tolerance: float) -> str:
    """A tolerance as tables have it."""
    return f"{tolerance / LEVEL:.0f}/255" if tolerance else "exact"


def ask(processor: Any, image: Image.Image) -> Any:
    """Inputs of a prompt with one picture."""
    return processor(images=[image], text=[f"{IMAGE} w1 w5 w2 w8 w3 w9"], return_tensors="pt")


def cells_of(processor: Any, image: Image.Image) -> torch.Tensor:
    """(rows, columns, values) in [0, 1]: the cells that a processor makes of a picture."""
    about = processor.image_processor
    made = about(images=[image], return_tensors="pt")
    _, rows, columns = made["image_grid_thw"][0].tolist()
    std, side = torch.tensor(about.image_std), about.merge_size
    pixels = made["pixel_values"].unflatten(1, (3, -1)) * std[:, None]  # the mean does not matter to differences
    return pixels.reshape(rows // side, columns // side, -1)


def dropped(cells: torch.Tensor, tolerance: float) -> float:
    """Share of the cells that are copies."""
    limit = torch.full(cells.shape[-1:], tolerance + ROUNDING) if tolerance else None
    return float((copied_from(cells, limit) != NOTHING).float().mean())


def repeated(cells: torch.Tensor) -> float:
    """Share of the cells that equal another one before them, anywhere in the picture: what no rule can exceed."""
    flat = cells.flatten(0, 1)
    return 1 - len(torch.unique(flat, dim=0)) / len(flat)


def shares(kinds: Sequence[str], pictures: int) -> list[dict[str, Any]]:
    """Shares of every kind of picture, by the size of cells; families whose cells are alike share a row."""
    rows = []
    for family in ("qwen2_5_vl", "qwen3_vl"):
        processor = build(family, 2, 64, 1, 128)[1]
        size = processor.image_processor.patch_size * processor.image_processor.merge_size
        for kind in kinds:
            cells = [cells_of(processor, PICTURES[kind](seed)) for seed in range(pictures)]
            row: dict[str, Any] = {
                "picture": kind,
                "cell": size,
                "cells": round(mean(c[..., 0].numel() for c in cells)),
            }
            for tolerance in TOLERANCES:
                found = [dropped(c, tolerance) for c in cells]
                row[named(tolerance)] = {"mean": mean(found), "least": min(found), "most": max(found)}
            row["repeated anywhere"] = mean(repeated(c) for c in cells)
            rows.append(row)
            print(kind, size, {k: v for k, v in row.items() if k not in ("picture", "cell")})
    return rows


def prefill(model: Any, inputs: Any, features: Any) -> Any:
    """The language model on a prompt whose picture is encoded already."""
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    return model(**rest, mm_encoder_outputs={"image": features}, use_cache=True, logits_to_keep=1)


def encode(model: Any, inputs: Any) -> Any:
    """The encoder on a picture."""
    return model.base_model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)


@torch.no_grad()
def speed(model: Any, processor: Any, image: Image.Image, rounds: int, clock: Clock) -> dict[str, Any]:
    """Times of one picture with all patches and without exact copies."""
    config = TokenPrunerConfig(budget=1.0, merge_copies=0.0)
    pruning: Callable[[], Any] = partial(token_pruner, model, processor, config)
    inputs = ask(processor, image)
    features = encode(model, inputs)
    with pruning():
        fewer = ask(processor, image)
        kept = encode(model, fewer)
        n, m = kept.kept[0].num_tokens, len(kept.kept[0].indices)
    cells = cells_of(processor, image)
    jobs: dict[str, Job] = {
        "encoder, all": partial(encode, model, inputs),
        "encoder, fewer": partial(encode, model, fewer),
        "prefill, all": partial(prefill, model, inputs, features),
        "prefill, fewer": partial(prefill, model, fewer, kept),
        "looking": partial(copied_from, cells),
    }
    around: dict[str, Around] = {name: pruning for name in jobs if name.endswith("fewer")}
    seconds = time_in_turns(jobs, rounds, around=around, clock=clock)
    for which in ("all", "fewer"):
        seconds[f"both, {which}"] = [
            sum(p) for p in zip(*(seconds[f"{part}, {which}"] for part in PARTS[:2]), strict=True)
        ]
    return {
        "tokens": n,
        "kept": m,
        **{f"{part} / all": ratio(seconds, f"{part}, fewer", f"{part}, all") for part in PARTS},
        "looking / encoder": ratio(seconds, "looking", "encoder, all"),
        "milliseconds": {name: median_ms(taken) for name, taken in seconds.items()},
    }


@torch.no_grad()
def outputs(model: Any, processor: Any, image: Image.Image) -> dict[str, float]:
    """How far the logits after the prompt move, relative to those of the stock model."""
    stock = model(**ask(processor, image), logits_to_keep=1).logits
    result = {}

    def moved(config: TokenPrunerConfig) -> float:
        with token_pruner(model, processor, config):
            logits = model(**ask(processor, image), logits_to_keep=1).logits
        return float((logits - stock).norm() / stock.norm())

    copies = TokenPrunerConfig(budget=1.0, merge_copies=0.0)
    with token_pruner(model, processor, copies):
        as_many = int((ask(processor, image)["input_ids"] == model.config.image_token_id).sum())
    result["copies dropped"] = moved(copies)
    result["and proportional attention"] = moved(
        TokenPrunerConfig(budget=1.0, merge_copies=0.0, proportional_attention=True)
    )
    for method in ("random", "uniform"):
        result[f"as many, {method}"] = moved(TokenPrunerConfig(method=method, budget=as_many))
    return result


def tables(results: dict[str, Any]) -> str:
    """All three parts as Markdown."""
    names = [named(t) for t in TOLERANCES]
    first = [
        [row["picture"], row["cell"], row["cells"]]
        + [f"{row[n]['mean']:.1%} ({row[n]['least']:.0%} to {row[n]['most']:.0%})" for n in names]
        + [f"{row['repeated anywhere']:.1%}"]
        for row in results["shares"]
    ]
    second = [
        [row["family"], row["picture"], f"{row['kept']} of {row['tokens']}"]
        + [f"{row[f'{part} / all']:.2f}" for part in PARTS]
        + [f"{row['looking / encoder']:.1%}"]
        for row in results["speed"]
    ]
    third = [
        [row["family"], row["picture"], *(f"{value:.3f}" for value in row["moved"].values())]
        for row in results["speed"]
    ]
    return "\n".join([
        f"Share of cells dropped, mean (least to most) of {results['setting']['pictures']} pictures; limit: all that "
        "equal another cell, exactly, anywhere in the picture", "",
        markdown(["picture", "cell, pixels", "cells", *names, "limit of exact"], first), "",
        "Time without exact copies, of that with all patches (median over rounds; 1.00 is no gain); looking: time of "
        "finding the copies, of the encoder's with all patches", "",
        markdown(["family", "picture", "tokens kept", "encoder", "prefill", "both", "looking"], second), "",
        "How far the logits after the prompt move, relative to their length (random weights; 0 is the stock model)", "",
        markdown(["family", "picture", *results["speed"][0]["moved"]], third),
    ])  # fmt: skip


def plot(results: dict[str, Any], path: Path) -> None:
    """Shares by kind and tolerance, and times by family."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    rows = [row for row in results["shares"] if row["cell"] == results["shares"][0]["cell"]]
    names = [named(t) for t in TOLERANCES]
    for i, name in enumerate(names):
        places = [x + 0.2 * i for x in range(len(rows))]
        left.bar(places, [100 * row[name]["mean"] for row in rows], 0.2, label=name)
    limits = [100 * row["repeated anywhere"] for row in rows]
    left.plot([x + 0.2 for x in range(len(rows))], limits, "k_", markersize=24, label="limit of exact")
    left.set_xticks([x + 0.2 for x in range(len(rows))], [row["picture"].replace(" ", "\n", 1) for row in rows])
    left.set(ylabel="cells dropped, %", title=f"cells of {rows[0]['cell']} pixels")
    for part, marker in (("encoder", "o"), ("prefill", "s"), ("both", "^")):
        points = results["speed"]
        right.plot([p["kept"] / p["tokens"] for p in points], [p[f"{part} / all"] for p in points], marker, label=part)
    right.plot([0, 1], [0, 1], "--", color="grey", label="share of tokens")
    right.set(
        xlabel="tokens kept, share", ylabel="time, of that with all patches", title="three families, four pictures"
    )
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "copied_patches", threads=True)
    made.add_argument("--quick", action="store_true", help="one family, two pictures, small models")
    made.add_argument("--families", nargs="+", choices=KINDS, default=list(KINDS))
    made.add_argument("--pictures", type=at_least_one, default=6, help="of each kind; shares are averaged")
    made.add_argument("--rounds", type=at_least_one, default=3, help="rounds of the timing")
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time, or CPU time of the process")
    made.add_argument("--vision-layers", type=int, default=2)
    made.add_argument("--vision-width", type=int, default=640)
    made.add_argument("--layers", type=int, default=2, help="layers of the language model")
    made.add_argument("--width", type=int, default=1024, help="hidden size of the language model")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    record_run(arguments.output)
    shape = (arguments.vision_layers, arguments.vision_width, arguments.layers, arguments.width)
    clock = CLOCKS[arguments.clock]
    families, kinds, pictures = arguments.families, list(TIMED), arguments.pictures
    if arguments.quick:
        families, kinds, pictures, shape = families[:1], kinds[:2], 2, (2, 128, 2, 256)
    names = ("encoder layers", "encoder width", "language layers", "language width")
    setting = {
        "pictures": pictures,
        "rounds": arguments.rounds,
        "clock": arguments.clock,
        **dict(zip(names, shape, strict=True)),
    }
    stem, table = ("quick", "quick.md") if arguments.quick else ("results", "table.md")
    results: dict[str, Any] = read_json(arguments.output / f"{stem}.json", {})
    if results.get("setting") != setting:
        results = {"setting": setting, "shares": shares(list(PICTURES), pictures), "speed": []}
    known = {(row["family"], row["picture"]) for row in results["speed"]}
    for family in families:
        missing = [kind for kind in kinds if (family, kind) not in known]
        model, processor = build(family, *shape) if missing else (None, None)
        for kind in missing:
            image = PICTURES[kind](0)
            row = {"family": family, "picture": kind, **speed(model, processor, image, arguments.rounds, clock)}
            results["speed"].append({**row, "moved": outputs(model, processor, image)})
            write_json(arguments.output / f"{stem}.json", results)
    write_table(arguments.output / table, tables(results))
    plot(results, arguments.output / f"{stem}.png")


if __name__ == "__main__":
    main()
