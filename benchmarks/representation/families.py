"""What VLMs answer by families of questions: `python -m benchmarks.representation.families --model ... --sets ...`.

With all visual tokens, and shown noise instead of the image ("blind": what can be guessed). Nothing is pruned: such
figures are of a measuring instrument, and stand on its card; the line in the plot is its goal. An interrupted run goes
on where it was.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.representation.grading import grade_models, scenes_of
from benchmarks.representation.retention_statistics import bootstrap_of, row_of
from hf_efficient.representation.evaluation.questions import TINY_VLM

GOAL = 0.8  # of every family; 0.9 of all questions
BLIND = ", blind"


def measure(models: Sequence[str], name: str, limit: int | None, output: Path) -> list[dict[str, Any]]:
    """Two rows for every model on one set: with all tokens, and blind."""
    scenes = scenes_of(name, limit)
    grades = grade_models(models, scenes, {}, (), output / f"{label_of(name)}.json")
    bootstrap, rows = bootstrap_of(scenes), []
    for what, found in (("", grades.whole), (BLIND, grades.blind)):
        for label, graded in zip(grades.labels, found, strict=True):
            labels = {"row": f"{label}, {label_of(name)}{what}", "asked": len(scenes)}
            rows.append(row_of(scenes, [graded], bootstrap, **labels))
    return rows


def label_of(name: str) -> str:
    """A set's name as a label: the folder's, or layout and seed."""
    return Path(name).name.replace(":", " ")


def table(rows: Sequence[Mapping[str, Any]], families: Sequence[str]) -> str:
    """Exact answers in per cent, a row each; "–" where a set has no such question."""
    lines = []
    for row in rows:
        low, high = row["interval"]
        cells = [f"{100 * row['families'][f]:.1f}" if f in row["families"] else "–" for f in families]
        lines.append([row["row"], row["asked"], f"{100 * row['accuracy']:.1f}", f"{low:.1%} to {high:.1%}", *cells])
    head = ["model and set", "scenes", "all", "95 % interval", *families]
    return "Exact answers in per cent, by family of questions.\n\n" + markdown(head, lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], families: Sequence[str], path: Path) -> None:
    """A column for every family, a mark for every row: filled with all tokens, hollow of the same color for blind."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    colors = {name: f"C{at % 10}" for at, name in enumerate(dict.fromkeys(r["row"].removesuffix(BLIND) for r in rows))}
    for number, row in enumerate(rows):
        blind = row["row"].endswith(BLIND)
        places = [at for at, family in enumerate(families) if family in row["families"]]
        heights = [100 * row["families"][families[at]] for at in places]
        axes.plot(
            [at + 0.06 * (number - len(rows) / 2) for at in places], heights, "o",
            color=colors[row["row"].removesuffix(BLIND)], fillstyle="none" if blind else "full", label=row["row"],
        )  # fmt: skip
    axes.axhline(100 * GOAL, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(families)), families, rotation=30)
    axes.set_ylabel("exact answers, %")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "photo_vlm")
    made.add_argument("--model", nargs="+", default=[str(TINY_VLM)], help="folders or ids of LLaVAs")
    made.add_argument("--sets", nargs="+", required=True, help="folders of images with questions, or LAYOUT:SEED")
    made.add_argument("--scenes", type=at_least_one, help="at most this many of each set")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    rows = [r for name in arguments.sets for r in measure(arguments.model, name, arguments.scenes, arguments.output)]
    families = list(dict.fromkeys(family for row in rows for family in row["families"]))
    write_json(arguments.output / "results.json", {"rows": rows})
    draw(rows, families, arguments.output / "families.png")
    write_table(arguments.output / "table.md", table(rows, families))


if __name__ == "__main__":
    main()
