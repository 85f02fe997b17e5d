"""Which parts of ID-Pruner and ITG act, and which values are best: `python -m benchmarks.representation.parts`.

Every row changes one part of the method as it comes: switched off, turned round, or another value. Beside it stands how
far that is ahead of the method as it comes, on the same questions, with the 95 % interval of a paired bootstrap over
photographs and scenes. On validation scenes, on which defaults are chosen; the test set is not read.

Any LLaVA, and any folders of images with questions: `--model`, `--validation`. An interrupted run goes on where it was.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.intervals import Bootstrap, interval
from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.representation import protocol
from benchmarks.representation.footing_statistics import signed, verdict
from benchmarks.representation.grading import ModelGrades, Settings, grade_models, scenes_of
from benchmarks.representation.protocol import CLASSES, OURS
from benchmarks.representation.retention_statistics import accuracy, bootstrap_of
from benchmarks.representation.turned import add_turned
from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.evaluation.questions import TINY_VLM

BUDGETS = (0.125, 0.0625, 0.03)
AS_IT_COMES = "as it comes"
TICKS = (-50, -20, -10, -5, -2, -1, 0, 1, 2)  # of the plot, in points
#: Method -> part and value -> what of its settings is another.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "id_pruner": {
        AS_IT_COMES: {},
        "importance: off": {"coverage_mix": 0.0},
        "importance: turned round": {"method": "id_pruner_reversed"},
        "importance: [CLS] attention": {"importance": "cls"},
        "importance: attention received": {"importance": "received"},
        "importance: length": {"importance": "norm"},
        "power: 1": {"coverage_power": 1.0},
        "power: 2": {"coverage_power": 2.0},
        "power: 5": {"coverage_power": 5.0},
        "floor: off": {"coverage_mix": 1.0},
        "floor: half": {"coverage_mix": 0.5},
        "floor: a tenth": {"coverage_mix": 0.9},
        "coverage: off": {"importance_weight": 1.0},
        "coverage: turned round": {"method": "id_pruner_least"},
        "kernel: rbf": {"kernel": "rbf"},
        "exchanges: a pass": {"exchange_passes": 1},
        "positions: the other": {},
    },
    "itg": {
        AS_IT_COMES: {},
        "importance: off": {"method": "itg_even"},
        "importance: turned round": {"method": "itg_reversed"},
        "importance: [CLS] attention": {"importance": "cls"},
        "importance: attention received": {"importance": "received"},
        "importance: length": {"importance": "norm"},
        "weights of clusters: off": {"importance_power": 0.0},
        "weights of clusters: power 2": {"importance_power": 2.0},
        "initial centers: far apart": {"initial_centers": "farthest_first"},
        "initial centers: coverage": {"initial_centers": "coverage"},
        "steps: none": {"lloyd_steps": 0},
        "steps: 10": {"lloyd_steps": 10},
        "tokens: means alone": {"centroid_share": 1.0},
        "tokens: real ones": {"centroid_share": 0.0},
        "positions: the other": {},
    },
}


def rows_of(method: str, sizes: bool) -> dict[str, dict[str, Any]]:
    """Part and value -> settings, in a class."""
    other = {"positions": "compact" if sizes else "original"}
    changes = {**PARTS[method], "positions: the other": other}
    return {part: {**protocol.default(method, sizes), **change} for part, change in changes.items()}


def key_of(class_name: str, method: str, part: str) -> str:
    """The name of a row's grades."""
    return f"{method}, {class_name}, {part}"


def compare(grades: ModelGrades, method: str, class_name: str, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Every part of a method in a class against the method as it comes, by budget and over all budgets."""
    budgets = list(dict.fromkeys(budget for _, budget in grades.pruned))
    whole = {budget: grades.pruned[key_of(class_name, method, AS_IT_COMES), budget] for budget in budgets}
    rows = []
    for part in PARTS[method]:
        found = {budget: grades.pruned[key_of(class_name, method, part), budget] for budget in budgets}
        gaps = [bootstrap.samples(found[b]) - bootstrap.samples(whole[b]) for b in budgets]
        points = [accuracy(found[b]) - accuracy(whole[b]) for b in budgets]
        whole_gap: tuple[str, float, np.ndarray] = ("mean", float(np.mean(points)), np.mean(gaps, axis=0))
        cells = [*zip(map(str, budgets), points, gaps, strict=True), whole_gap]
        row: dict[str, Any] = {"method": method, "class": class_name, "part": part}
        row["accuracy"] = {str(b): round(accuracy(found[b]), 4) for b in budgets}
        row["lead"] = {name: {"ahead": round(by, 4), "interval": interval(gap)} for name, by, gap in cells}
        rows.append(row)
    return rows


def table(result: Mapping[str, Any]) -> str:
    """A table for each method and class."""
    tokens = result["tokens"]
    said = [
        f"{result['questions']} questions about {result['scenes']} validation scenes of {', '.join(result['sets'])}; "
        f"models: {', '.join(result['models'])}; {100 * result['whole']:.1f} % with all {result['all']} tokens. "
        "Points ahead of the method as it comes, with 95 % intervals."
    ]  # fmt: skip
    for method, class_name in product(OURS, CLASSES):
        lines = []
        for row in (row for row in result["rows"] if (row["method"], row["class"]) == (method, class_name)):
            right = [f"{100 * value:.1f}" for value in row["accuracy"].values()]
            leads = (
                ["", ""] if row["part"] == AS_IT_COMES else [signed(row["lead"]["mean"]), verdict(row["lead"]["mean"])]
            )
            lines.append([row["part"], *right, *leads])
        said += [f"## {method}, {class_name}", markdown(["part", *map(str, tokens.values()), "ahead, mean", ""], lines)]
    return "\n\n".join(said)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """How far each change is ahead: a panel for each method, both classes."""
    figure, grid = plt.subplots(1, len(OURS), figsize=(13, 5.6), layout="constrained", squeeze=False)
    for axes, method in zip(grid[0], OURS, strict=True):
        parts = [part for part in PARTS[method] if part != AS_IT_COMES]
        for shift, (class_name, colour) in zip((-0.15, 0.15), zip(CLASSES, ("C0", "C1"), strict=True), strict=True):
            rows = {row["part"]: row["lead"]["mean"] for row in result["rows"]
                    if (row["method"], row["class"]) == (method, class_name)}  # fmt: skip
            middle = np.array([100 * rows[part]["ahead"] for part in parts])
            ends = np.array([[100 * end for end in rows[part]["interval"]] for part in parts])
            away = np.abs(ends.T - middle)
            places = np.arange(len(parts)) + shift
            axes.errorbar(middle, places, xerr=away, fmt="o", ms=4, capsize=2, color=colour, label=class_name)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(parts)), parts)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=2)
        axes.set_xticks(TICKS, [f"{tick:+d}" if tick else "0" for tick in TICKS])
        axes.set(title=method, xlabel="points ahead of the method as it comes (mean over budgets)")
        axes.legend(fontsize=8)
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "parts")
    made.add_argument("--model", nargs="+", default=[str(TINY_VLM)], help="folders or ids of LLaVAs: training seeds")
    made.add_argument("--validation", nargs="+", default=list(protocol.VALIDATION), help="LAYOUT:SEED, or folders")
    made.add_argument("--validation-scenes", type=at_least_one, default=128, help="of each")
    made.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS), help="shares of the tokens")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    add_turned()
    rows: dict[str, Settings] = {
        key_of(name, method, part): settings
        for method, (name, sizes) in product(OURS, CLASSES.items())
        for part, settings in rows_of(method, sizes).items()
    }
    scenes = [scene for named in arguments.validation for scene in scenes_of(named, arguments.validation_scenes)]
    grades = grade_models(arguments.model, scenes, rows, arguments.budgets, arguments.output / "grades.json")
    result = summary(arguments, grades, scenes)
    write_json(arguments.output / "results.json", result)
    write_table(arguments.output / "table.md", table(result))
    plot(result, arguments.output / "parts.png")


def summary(arguments: argparse.Namespace, grades: ModelGrades, scenes: Sequence[Any]) -> dict[str, Any]:
    """All that was measured."""
    bootstrap = bootstrap_of(scenes)
    tokens = {str(b): TokenPrunerConfig(budget=b).tokens_to_keep(grades.tokens) for b in arguments.budgets}
    return {
        "models": grades.labels,
        "sets": [Path(named).name for named in arguments.validation],
        "scenes": len(scenes),
        "questions": sum(len(scene.questions) for scene in scenes),
        "all": grades.tokens,
        "whole": round(accuracy(grades.whole), 4),
        "tokens": tokens,
        "rows": [row for m, name in product(OURS, CLASSES) for row in compare(grades, m, name, bootstrap)],
    }


if __name__ == "__main__":
    main()
