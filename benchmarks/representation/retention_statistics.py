"""Accuracies with bootstrap intervals, paired differences, and the table and curves made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.intervals import Bootstrap, Grades, interval
from benchmarks.harness.plots import plt, save
from benchmarks.harness.tables import markdown
from hf_efficient.representation.evaluation.questions import Scene


def bootstrap_of(scenes: Sequence[Scene]) -> Bootstrap:
    """The bootstrap over photographs and scenes."""
    return Bootstrap([len(scene.questions) for scene in scenes], [scene.photograph for scene in scenes])


def accuracy(graded: Sequence[Grades]) -> float:
    return float(np.mean([right for grades in graded for row in grades for right in row]))


def by_family(scenes: Sequence[Scene], graded: Sequence[Grades]) -> dict[str, float]:
    """Accuracy of each question family."""
    answers: dict[str, list[bool]] = {}
    for grades in graded:
        for scene, row in zip(scenes, grades, strict=True):
            for question, right in zip(scene.questions, row, strict=True):
                answers.setdefault(question.family, []).append(right)
    return {family: round(float(np.mean(rights)), 4) for family, rights in answers.items()}


def row_of(scenes: Sequence[Scene], graded: Sequence[Grades], bootstrap: Bootstrap, **labels: Any) -> dict[str, Any]:
    """One row: `graded` holds the grades of every model."""
    row = {
        **labels, "accuracy": round(accuracy(graded), 4), "interval": interval(bootstrap.samples(graded)),
        "families": by_family(scenes, graded),
    }  # fmt: skip
    if len(graded) > 1:
        row["models"] = [round(accuracy([grades]), 4) for grades in graded]
    return row


def leads_of(here: Mapping[str, Sequence[Grades]], bootstrap: Bootstrap, ours: Sequence[str]) -> list[dict[str, Any]]:
    """How far each configuration of ours, by itself, is ahead of the best of the others at one budget.

    Args:
        here: row -> grades of every model. Rows whose names begin with one of `ours` are variants of ours.
        bootstrap: of the scenes.
        ours: rows, one configuration each. The rival is picked on these very answers, which is in its favour.
    """
    others = {name: accuracy(grades) for name, grades in here.items() if not name.startswith(tuple(ours))}
    if not others:
        return []
    rival = max(others, key=others.__getitem__)
    leads = []
    for name in (name for name in ours if name in here):
        gap = bootstrap.samples(here[name]) - bootstrap.samples(here[rival])
        ahead = round(accuracy(here[name]) - others[rival], 4)
        leads.append({"ours": name, "rival": rival, "ahead": ahead, "interval": interval(gap)})
    return leads


def compare(
    scenes: Sequence[Scene],
    graded: Mapping[tuple[str, float], Sequence[Grades]],
    everything: Sequence[Grades],
    blind: Sequence[Grades],
    total: int,
    tokens: dict[float, int],
    against: Sequence[str],
) -> dict[str, Any]:
    """All rows, and per budget what each of `against` is ahead of the best of the others.

    Args:
        scenes: what was asked.
        graded: (method, budget) -> grades of every model.
        everything: grades with all tokens.
        blind: grades with noise in place of the images.
        total: tokens of an image.
        tokens: budget -> tokens kept.
        against: methods that the others are compared with; the first gives `behind_first`.
    """
    bootstrap = bootstrap_of(scenes)
    anchors = [
        row_of(scenes, everything, bootstrap, method="all tokens", tokens=total),
        row_of(scenes, blind, bootstrap, method="blind", tokens=total),
    ]
    rows, leads = [], []
    for budget, kept in tokens.items():
        here = {method: grades for (method, b), grades in graded.items() if b == budget}
        for method, grades in here.items():
            row = row_of(scenes, grades, bootstrap, method=method, budget=budget, tokens=kept)
            row["retention"] = round(row["accuracy"] / max(anchors[0]["accuracy"], 1e-9), 4)
            for name, other in (("first", against[0]), *((other, other) for other in against[1:])):
                if other in here:
                    row[f"behind_{name}"] = round(accuracy(here[other]) - row["accuracy"], 4)
                    gap = bootstrap.samples(here[other]) - bootstrap.samples(grades)
                    row[f"behind_{name}_interval"] = interval(gap)
            rows.append(row)
        leads += [{"budget": budget, "tokens": kept, **lead} for lead in leads_of(here, bootstrap, against)]
    return {"anchors": anchors, "rows": rows, "leads": leads}


def table(result: dict[str, Any]) -> str:
    """The measurements as Markdown: who leads, then every method and question family."""
    leads = []
    for lead in result["leads"]:
        low, high = lead["interval"]
        leads.append([lead["tokens"], lead["ours"], lead["rival"], f"{lead['ahead']:+.1%}",
                      f"{low:+.1%} to {high:+.1%}"])  # fmt: skip
    families = list(result["anchors"][0]["families"])
    seeds = ["each model"] if "models" in result["anchors"][0] else []
    head = ["method", "tokens", "accuracy", "95 % interval", f"behind {result['first']}", *seeds, *families]
    rows = []
    for row in [*result["anchors"], *result["rows"]]:
        low, high = row["interval"]
        behind = ""
        if row.get("behind_first"):
            behind = "{:+.1%} ({:+.1%} to {:+.1%})".format(row["behind_first"], *row["behind_first_interval"])
        cells = [row["method"], str(row["tokens"]), f"{row['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", behind]
        cells += [", ".join(f"{one:.1%}" for one in row["models"])] if seeds else []
        rows.append(cells + [f"{row['families'][family]:.1%}" for family in families])
    first = markdown(["tokens", "ours", "best of the others", "ahead", "95 % interval"], leads)
    return f"{first}\n\n{markdown(head, rows)}"


def curves(
    result: dict[str, Any], path: Path, strong: Sequence[str], panels: dict[str, dict[str, str]] | None = None
) -> None:
    """Accuracy over tokens kept, a curve per row; those labelled as in `strong` in black and colour, the others thin.

    Args:
        result: what `compare` returned, and more.
        path: of the image.
        strong: labels.
        panels: title -> {row: label}, side by side; a label has one colour in all of them. None: all rows in one.
    """
    there = list(dict.fromkeys(row["method"] for row in result["rows"]))
    panels = panels or {"": {name: name for name in there}}
    panels = {title: {m: at for m, at in rows.items() if m in there} for title, rows in panels.items()}
    panels = {title: rows for title, rows in panels.items() if rows}
    labels = list(dict.fromkeys(label for rows in panels.values() for label in rows.values()))
    figure, grid = plt.subplots(1, len(panels), figsize=(3 + 7 * len(panels), 6.5), squeeze=False, sharey=True,
                                  layout="constrained")  # fmt: skip
    for axes, (title, rows) in zip(grid[0], panels.items(), strict=True):
        for method, label in rows.items():
            _curve(axes, [row for row in result["rows"] if row["method"] == method], label, labels, strong)
        for anchor, line in zip(result["anchors"], ("--", ":"), strict=False):
            axes.axhline(anchor["accuracy"], linestyle=line, color="grey", label=anchor["method"])
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({row["tokens"] for row in result["rows"]}), minor=False)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(title=title, xlabel=f"visual tokens kept of {result['anchors'][0]['tokens']}")
    grid[0, 0].set_ylabel("exact-match accuracy")
    grid[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def _curve(axes: Any, rows: list[dict[str, Any]], label: str, labels: list[str], strong: Sequence[str]) -> None:
    rows = sorted(rows, key=lambda row: row["tokens"])
    values, number = np.array([row["accuracy"] for row in rows]), labels.index(label)
    style: dict[str, Any] = {"linewidth": 1, "color": plt.get_cmap("tab20").colors[number % 20], "alpha": 0.8}
    if label in strong:
        style = {"linewidth": 2.6, "color": ("black", "crimson", "royalblue")[strong.index(label) % 3]}
    elif number >= 20:
        style["linestyle"] = "--"
    spread = np.abs(np.array([row["interval"] for row in rows]).T - values)
    axes.errorbar([row["tokens"] for row in rows], values, spread, marker="o", markersize=3, capsize=2, label=label,
                  **style)  # fmt: skip
