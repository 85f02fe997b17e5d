"""Methods of token reduction on equal footing, by a protocol that is fixed before the test set is opened.

    python -m benchmarks.representation.equal_footing choose
    python -m benchmarks.representation.equal_footing test

`choose` measures every method with every setting that it supports on validation scenes, and writes into `chosen.json`
one setting for each method with proportional attention, and one without, the same at all budgets. `test` reads that
file, opens the test set, and compares what `protocol.py` names: our defaults with the best other training-free method,
best by validation (which decides) and best on the test itself (stricter). Trained generators have a table of their own.

Any LLaVA and any folder of images with questions: `--model` (several: training seeds), `--validation`, `--test-set`.
An interrupted run goes on where it was. After a change of a method's rule, `--again METHOD` measures it anew.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.representation import protocol
from benchmarks.representation.footing_statistics import (
    accuracy_table,
    comparison_table,
    decide,
    short_table,
    sizes_table,
    worth_of_sizes,
)
from benchmarks.representation.grading import ModelGrades, Settings, grade_models, scenes_of
from benchmarks.representation.identity import models_of
from benchmarks.representation.protocol import BUDGETS, CHOICE_BUDGETS, CLASSES, COMPARISONS, OURS, RESIZED
from benchmarks.representation.retention_statistics import accuracy, bootstrap_of, curves, row_of
from hf_efficient import TokenPrunerConfig
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.evaluation.questions import EVALUATION_SET, TINY_VLM

Table = dict[str, dict[float, float]]  # row -> budget -> accuracy


def validate(
    arguments: argparse.Namespace, rows: dict[str, Settings], budgets: Sequence[float], again: Sequence[str] = ()
) -> Table:
    """Accuracies on validation scenes: means over their sets and the models."""
    found: dict[str, dict[float, list[float]]] = {name: {budget: [] for budget in budgets} for name in rows}
    for number, named in enumerate(arguments.validation):
        scenes = scenes_of(named, arguments.validation_scenes)
        book = arguments.output / f"validation_{number}.json"
        grades = grade_models(arguments.model, scenes, rows, budgets, book, again)
        for (name, budget), graded in grades.pruned.items():
            found[name][budget].append(accuracy(graded))
    return {name: {b: sum(v) / len(v) for b, v in by.items()} for name, by in found.items()}


def choose(arguments: argparse.Namespace) -> None:
    """The step before the test: `chosen.json`."""
    grids = {(row.name, c): protocol.grid(row, sizes) for row in REPRESENTATION.methods for c, sizes in CLASSES.items()}
    rows: dict[str, Settings] = {protocol.setting_name(one): one for grid in grids.values() for one in grid}
    measured = validate(arguments, rows, CHOICE_BUDGETS, arguments.again)
    chosen = {protocol.chosen_name(*key): protocol.choose(grid, measured) for key, grid in grids.items()}
    taken: dict[str, Settings] = {**chosen, **defaults(), RESIZED: None}
    rest = validate(arguments, {key_of(name, s): s for name, s in taken.items()}, BUDGETS)
    content = {
        "models": models_of(arguments.model),
        "validation": [Path(named).name for named in arguments.validation],
        "scenes": arguments.validation_scenes,
        "rows": {n: {"settings": s, "accuracy": rounded(rest[key_of(n, s)])} for n, s in taken.items()},
        "grid": {name: rounded(by) for name, by in measured.items()},
    }
    write_json(arguments.output / "chosen.json", content)


def rounded(accuracies: Mapping[float, float]) -> dict[float, float]:
    """To four digits, for a file."""
    return {budget: round(value, 4) for budget, value in accuracies.items()}


def defaults() -> dict[str, dict[str, Any]]:
    """Rows of our methods as they come."""
    return {protocol.default_name(m, c): protocol.default(m, sizes) for m in OURS for c, sizes in CLASSES.items()}


def key_of(name: str, settings: Settings) -> str:
    """The key of a row's grades: what its settings are called, so that another choice is another key."""
    return name if settings is None or "generator" in settings else protocol.setting_name(settings)


def trained_rows(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Rows of saved configs whose generator was trained."""
    saved = {folder.name: TokenPrunerConfig.from_pretrained(folder) for folder in folders}
    return {
        f"{c.method} ({name}), trained": {**c.to_dict(), "generator": c.generator} for name, c in saved.items()
    }  # fmt: skip


def test(arguments: argparse.Namespace) -> None:
    """The step that opens the test set."""
    path = arguments.chosen or arguments.output / "chosen.json"
    chosen = read_json(path, None)
    if chosen is None:
        raise SystemExit(f"{path} is missing: run the step `choose` first, on validation scenes.")
    asked = models_of(arguments.model)
    if not chosen["models"].items() <= asked.items():  # more training seeds may be tested than chose
        raise SystemExit(
            f"The settings in {path} were chosen with other models: {chosen['models']} (name and digest), and --model "
            f"says {asked}. Test those too, or run the step `choose` with these, with another --output."
        )
    rows = {name: row["settings"] for name, row in chosen["rows"].items()}
    validation = {n: {float(b): v for b, v in row["accuracy"].items()} for n, row in chosen["rows"].items()}
    trained = trained_rows(arguments.trained)
    measured = {**rows, **trained}
    keys = {name: key_of(name, settings) for name, settings in measured.items()}
    scenes = scenes_of(str(arguments.test_set), arguments.scenes)
    by_key = {keys[name]: settings for name, settings in measured.items()}
    grades = grade_models(arguments.model, scenes, by_key, BUDGETS, arguments.output / "grades.json", arguments.again)
    result = judge(grades, keys, validation, list(trained), scenes)
    result["settings"] = {name: setting_words(settings) for name, settings in measured.items()}
    result |= {"test set": Path(arguments.test_set).name, "models": grades.labels}
    result |= {"chosen with": list(chosen["models"]), "validation": chosen["validation"]}
    write_json(arguments.output / "results.json", result)
    write_table(arguments.output / "table.md", report(result, validation))
    curves(result, arguments.output / "accuracy.png", OURS, panels_of(rows))


def judge(
    grades: ModelGrades, keys: dict[str, str], validation: Table, trained: Sequence[str], scenes: Sequence[Any]
) -> dict[str, Any]:
    """All that is read off the test set."""
    bootstrap = bootstrap_of(scenes)
    anchors = [
        row_of(scenes, of, bootstrap, method=name, tokens=grades.tokens)
        for name, of in (("all tokens", grades.whole), ("blind", grades.blind))
    ]
    pairs = {
        row.name: (protocol.chosen_name(row.name, "with sizes"), protocol.chosen_name(row.name, "without sizes"))
        for row in REPRESENTATION.methods
        if protocol.chosen_name(row.name, "with sizes") in keys
    }
    rows, leads, worth = [], [], {}
    for budget in BUDGETS:
        here = {name: grades.pruned[key, budget] for name, key in keys.items()}
        tokens = TokenPrunerConfig(budget=budget).tokens_to_keep(grades.tokens)
        rows += [
            row_of(scenes, of, bootstrap, method=name, budget=budget, tokens=tokens) for name, of in here.items()
        ]  # fmt: skip
        leads += [decide(comparison, here, validation, budget, bootstrap) for comparison in COMPARISONS]
        worth[budget] = worth_of_sizes(here, pairs, bootstrap)
    leads.sort(key=lambda lead: [c.title for c in COMPARISONS].index(lead["comparison"]))
    questions = sum(len(scene.questions) for scene in scenes)
    return {"anchors": anchors, "rows": rows, "leads": leads, "worth of sizes": worth, "trained": list(trained),
            "scenes": len(scenes), "questions": questions}  # fmt: skip


def setting_words(settings: Settings) -> str:
    """What stands beside a row's name."""
    if settings is None or "generator" in settings:
        return ""
    named = [str(settings[name]) for name in protocol.GRID if name in settings]
    return ", ".join(named) or "as it comes"


def report(result: dict[str, Any], validation: Table) -> str:
    """The tables, the shortest first."""
    tokens = {row["budget"]: row["tokens"] for row in result["rows"]}
    accuracies: Table = {}
    for row in result["rows"]:
        accuracies.setdefault(row["method"], {})[row["budget"]] = row["accuracy"]
    whole, blind = (f"{100 * row['accuracy']:.1f} %" for row in result["anchors"])
    free = [name for name in accuracies if name not in result["trained"]]
    parts = [
        f"{result['questions']} questions about {result['scenes']} scenes of `{result['test set']}`; {whole} with all "
        f"{result['anchors'][0]['tokens']} tokens, {blind} shown noise.",
        "## Ours and the best rival", short_table(accuracies, validation, tokens),
        "## What decides", comparison_table(result["leads"], tokens),
        "## One row, one configuration", accuracy_table(accuracies, tokens, result["settings"], free),
    ]  # fmt: skip
    if result["trained"]:
        parts += ["## Trained", accuracy_table(accuracies, tokens, result["settings"], result["trained"])]
    parts += ["## What proportional attention is worth", sizes_table(result["worth of sizes"], tokens)]
    return "\n\n".join(parts)


def panels_of(rows: dict[str, Settings]) -> dict[str, dict[str, str]]:
    """Curves with sizes and without, of ours the defaults."""
    panels: dict[str, dict[str, str]] = {}
    for name in reversed(CLASSES):
        mine = {protocol.default_name(m, name): m for m in OURS}
        theirs = {protocol.chosen_name(row.name, name): row.name for row in protocol.others()}
        panels[name] = {row: label for row, label in {**mine, **theirs}.items() if row in rows}
    return panels


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "equal_footing")
    made.add_argument("step", choices=("choose", "test"))
    made.add_argument("--model", nargs="+", default=[str(TINY_VLM)], help="folders or ids of LLaVAs: training seeds")
    made.add_argument("--validation", nargs="+", default=list(protocol.VALIDATION), help="LAYOUT:SEED, or folders")
    made.add_argument("--validation-scenes", type=at_least_one, default=protocol.VALIDATION_SCENES, help="of each")
    made.add_argument("--test-set", default=str(EVALUATION_SET), help="a folder, or LAYOUT:SEED")
    made.add_argument("--scenes", type=at_least_one, help="at most this many of the test set")
    made.add_argument("--trained", nargs="*", type=Path, default=[], help="folders of trained generators' configs")
    made.add_argument("--chosen", type=Path, help="for `test`: the file of `choose` (default: OUTPUT/chosen.json)")
    made.add_argument("--again", nargs="+", default=[], help="methods whose stored grades are measured anew")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    {"choose": choose, "test": test}[arguments.step](arguments)


if __name__ == "__main__":
    main()
