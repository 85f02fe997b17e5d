"""Quality against cost, each lever alone and the planned combination: `python -m benchmarks.budget.tradeoff`.

Instruments (`--instruments`): "tiny", the shipped VLM (144 tokens); "photo", the VLM behind DINOv2 (256 tokens; sets
are made by `examples.make_photo_vlm_evaluation` into FOLDER/photo_validation and FOLDER/photo_test, `--sets FOLDER`);
"text", MiniLM's top two layers trained on the newsgroups, which sees no pictures.

Levers: fewer visual tokens (three methods), zeros by SparseGPT or by Wanda, 8 or 4 bits. For each limit of a grid
`find_plan` tries, on validation rows, every lever alone at the cost that is allowed and the combinations; of each lever
the best on validation, and the best of all, are then tested once. Differences are paired by row; intervals are of a
bootstrap over scenes (texts), 95 %. A cell, a limit of a seed, is won or lost where the interval leaves out 0. Over
seeds the mean difference stands with Student's interval. Predicted costs stand beside measured ones. Each (instrument,
seed, limit) is written when it is done, and not done again.
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.budget.instruments import INSTRUMENTS, Instrument, batch_of
from benchmarks.harness.intervals import half_interval
from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plot_panels
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from hf_efficient import EfficiencyPlan, LimitError, find_plan
from hf_efficient.budget.planner.found import Candidate
from hf_efficient.budget.planner.limits import broken
from hf_efficient.budget.planner.weights import loaded_again

#: Limits as shares of what the model costs now.
GRID: tuple[dict[str, str], ...] = (
    *({"prefill_flops_nonzero": f"{share}%"} for share in (80, 60, 50, 40, 30)),
    *({"file_bytes": f"{share}%"} for share in (60, 40, 28, 20)),
)
#: And two limits at once: operations that tokens alone can reach, which an encoder that takes most of them bounds.
BOTH = {"tiny": {"prefill_flops": "70%", "file_bytes": "40%"}, "photo": {"prefill_flops": "85%", "file_bytes": "40%"}}
#: Rows that plans are chosen on, and tested on.
SIZES = {"text": (1000, 1000), "tiny": (320, 960), "photo": (96, 320)}
LEVERS = ("tokens", "sparsegpt", "wanda", "int8", "int4")
STOCK, PLAN = "stock", "plan"
VERDICTS = ("won", "level", "lost", "no lever alone fits", "nothing fits")


@dataclass(frozen=True)
class Cell:
    """A limit of a seed: of `VERDICTS`, and by how many points the plan is ahead of the best lever alone."""

    limit: str
    verdict: str
    difference: float | None = None


def grid_of(instrument: str, count: int | None) -> tuple[Mapping[str, str], ...]:
    """The first limits for an instrument, those that tell most before the others; None: all."""
    first = (GRID[3], BOTH.get(instrument, BOTH["tiny"]), GRID[1], GRID[6])
    return (*first, *(limit for limit in GRID if limit not in first))[:count]


def lever_of(plan: EfficiencyPlan) -> str:
    """The one lever that a plan uses; "" where it uses several or none."""
    used = ["tokens"] if plan.token_pruner is not None else []
    used += [plan.pruning.method] if plan.pruning is not None else []
    if plan.precision is not None:
        used.append("int8" if plan.precision.get("load_in_8bit") else "int4")
    return used[0] if len(used) == 1 else ""


def tested(instrument: Instrument, plan: EfficiencyPlan) -> list[int]:
    """Which test rows a plan answers rightly, 1 or 0."""
    model = instrument.model if plan.precision is None else loaded_again(instrument.model, plan.precision)
    processor = copy.deepcopy(instrument.processor)
    rows = instrument.validation[:64]
    batches = [batch_of(processor, rows[i : i + 8]) for i in range(0, len(rows), 8)]
    model, processor = plan.apply(copy.deepcopy(model), processor, batches)
    return [int(hit) for hit in instrument.hits(model, processor, instrument.test)]


def compared(instrument: Instrument, limit: Mapping[str, str], methods: Sequence[str]) -> dict[str, Any]:
    """What every lever, and the plan, reach under a limit."""
    try:
        found = find_plan(
            instrument.model, instrument.processor, instrument.validation, instrument.accuracy, limit,
            inputs=batch_of, methods=methods, further=0, progress=lambda name: print("  ", name, flush=True),
        )  # fmt: skip
    except LimitError as error:
        return {"refused": str(error)}
    fitting = [one for one in found.tried if not broken(one.measured, found.limits)]
    best: dict[str, Candidate] = {PLAN: found.best}
    for lever in LEVERS:
        if alone := [one for one in fitting if lever_of(one.plan) == lever]:
            best[lever] = max(alone, key=lambda one: one.quality)
    hits: dict[str, list[int]] = {}
    for one in best.values():
        if one.name not in hits:
            hits[one.name] = tested(instrument, one.plan)
    return {
        "limits": dict(found.limits),
        "stock": dict(found.stock.measured),
        "rows": {row: {"name": c.name, "validation": c.quality, "hits": hits[c.name]} for row, c in best.items()},
        "costs": [{"predicted": dict(c.predicted), "measured": dict(c.measured)} for c in found.tried],
    }


def differences(plan: Sequence[int], other: Sequence[int], scenes: Sequence[str]) -> list[float]:
    """Mean difference in points of percent, and its 95 % interval over scenes."""
    names = sorted(set(scenes))
    place = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for a, b, scene in zip(plan, other, scenes, strict=True):
        sums[place[scene]] += 100 * (a - b)
        counts[place[scene]] += 1
    draws = np.random.default_rng(0).integers(0, len(names), (2000, len(names)))
    samples = sums[draws].sum(1) / counts[draws].sum(1)
    return [float(sums.sum() / counts.sum()), *(float(q) for q in np.quantile(samples, (0.025, 0.975)))]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A table an instrument: accuracy of each lever and the plan, and where the plan is behind."""
    parts = []
    for name in sorted({key.split("|")[0] for key in rows}):
        lines, errors, cells = [], [], list[Cell]()
        for key, row in rows.items():
            if not key.startswith(f"{name}|"):
                continue
            _, seed, limit = key.split("|")
            if limit == STOCK:
                lines.append(["none", seed, *[""] * len(LEVERS), f"{100 * float(np.mean(row['hits'])):.1f}", STOCK, ""])
                continue
            if "refused" in row:
                lines.append([limit, seed, *[""] * len(LEVERS), "refused", "", ""])
                cells.append(Cell(limit, "nothing fits"))
                continue
            scenes = rows[f"{name}|{seed}|{STOCK}"]["scenes"]
            of = {r: 100 * float(np.mean(v["hits"])) for r, v in row["rows"].items()}
            alone = [lever for lever in LEVERS if lever in of]
            rival = max(alone, key=lambda lever: of[lever]) if alone else None
            shown = [f"{of[lever]:.1f}" if lever in of else "cannot" for lever in LEVERS]
            gap, cell = "", Cell(limit, "no lever alone fits")
            if rival is not None:
                d, low, high = differences(row["rows"][PLAN]["hits"], row["rows"][rival]["hits"], scenes)
                gap = f"{d:+.1f} ({low:+.1f} to {high:+.1f}), {rival}"
                cell = Cell(limit, "won" if low > 0 else "lost" if high < 0 else "level", d)
            cells.append(cell)
            lines.append([limit, seed, *shown, f"{of[PLAN]:.1f}", row["rows"][PLAN]["name"], gap])
            errors += row["costs"]
        head = ["limit", "seed", *LEVERS, PLAN, "which", "minus the best lever alone, picked on the test"]
        told = [f"**{name}**", markdown(head, lines), standing(cells), over_seeds(cells)]
        parts.append("\n\n".join([*filter(None, told), prediction_errors(errors)]) + "\n")
    return "\n".join(parts)


def standing(cells: Sequence[Cell]) -> str:
    """How often the plan was ahead of the best lever alone."""
    counts = {name: sum(cell.verdict == name for cell in cells) for name in VERDICTS}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name in VERDICTS[:3])
    return f"The plan against the best lever alone, {len(cells)} cells: {told}."


def over_seeds(cells: Sequence[Cell]) -> str:
    """Mean differences of the limits that three seeds or more have; "" where there is none."""
    of = {limit: [c.difference for c in cells if c.limit == limit and c.difference is not None]
          for limit in dict.fromkeys(cell.limit for cell in cells)}  # fmt: skip
    lines = [[limit, str(len(d)), f"{mean(d):+.1f} ± {half_interval(d):.1f}"] for limit, d in of.items() if len(d) > 2]
    return markdown(["limit", "seeds", "minus the best lever alone, mean over seeds"], lines) if lines else ""


def prediction_errors(costs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """The largest relative error of each predicted cost, over all plans that were measured."""
    errors: dict[str, list[float]] = {}
    for one in costs:
        for cost, value in one["measured"].items():
            if cost not in one["predicted"]:
                continue
            errors.setdefault(cost, []).append(abs(one["predicted"][cost] / value - 1) if value else 0.0)
    lines = [[cost, str(len(v)), f"{max(v):.1%}", f"{float(np.median(v)):.1%}"] for cost, v in errors.items()]
    return markdown(["predicted against measured", "plans", "largest error", "median"], lines)


def plot(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy over operations with weights that are not zero: a panel an instrument, a line a lever."""
    panels: dict[str, dict[str, list[tuple[str, list[float]]]]] = {}
    for key, row in rows.items():
        name, _, limit = key.split("|")
        if "rows" not in row or not limit.startswith("prefill_flops_nonzero"):
            continue
        for lever, reached in row["rows"].items():
            line = panels.setdefault(name, {}).setdefault(lever, [])
            accuracy = 100 * float(np.mean(reached["hits"]))
            at = limit.partition("=")[2]
            known = next((values for label, values in line if label == at), None)
            line.append((at, [accuracy])) if known is None else known.append(accuracy)
    if panels:
        plot_panels(panels, path, "operations with weights that are not zero, of those now", PLAN)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "tradeoff")
    made.add_argument("--instruments", nargs="+", choices=INSTRUMENTS, default=list(INSTRUMENTS))
    made.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        help="of training (text, photo) and of the rows that plans are chosen on (tiny, photo)",
    )
    made.add_argument("--methods", nargs="+", default=["id_pruner", "itg", "scope"], help="selections of visual tokens")
    made.add_argument("--sets", type=Path, default=Path("runs"), help="folder of photo_validation and photo_test")
    made.add_argument("--limits", type=int, help="the first so many limits, those that tell most (default: all)")
    made.add_argument("--validation", type=int, help="rows that plans are chosen on (default: 1000, 320, 96)")
    made.add_argument("--test", type=int, help="rows that they are tested on (default: 1000, 960, 320)")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    book = Rows(arguments.output / "rows.json", arguments, ("validation", "test", "methods"))
    for name in arguments.instruments:
        for seed in arguments.seeds:
            wanted = {
                f"{name}|{seed}|{', '.join(f'{k}={v}' for k, v in limit.items())}": limit
                for limit in grid_of(name, arguments.limits)
            }
            key = f"{name}|{seed}|{STOCK}"
            if {key, *wanted} <= set(book.rows):
                continue
            validation, test = SIZES[name]
            instrument = INSTRUMENTS[name](
                seed, arguments.sets, arguments.validation or validation, arguments.test or test
            )
            if key not in book.rows:
                scenes = [str(row.get("scene", i)) for i, row in enumerate(instrument.test)]
                book.add(key, {"hits": tested(instrument, EfficiencyPlan()), "scenes": scenes})
            for each, limit in wanted.items():
                if each not in book.rows:
                    print(each, flush=True)
                    book.add(each, compared(instrument, limit, arguments.methods))
    write_table(arguments.output / "table.md", table(book.rows))
    plot(book.rows, arguments.output / "accuracy.png")


if __name__ == "__main__":
    main()
