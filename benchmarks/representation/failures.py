"""Where pruning fails: one table a failure, ours and peers, with and without proportional attention.

`python -m benchmarks.representation.failures`

Pointing and naming places with compact and original positions; reading; small things and many of them; hallucination
(yes to "is there a ... ?" where there is none); calibration; questions that plain resizing of the image gets wrong
(VTC-Bench's rule); and two pictures in one prompt, with questions about the second. Any LLaVA and any folder of images
with questions; a table whose question family is not in the set is left out. With `--chosen` the others' settings are
those that validation chose for `equal_footing.py`; ours are as they come. An interrupted run goes on where it was.
"""

import argparse
import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.representation.failure_statistics import Said, Sheet
from benchmarks.representation.grade_book import Book, with_scenes
from benchmarks.representation.grading import resized, scenes_of, visual_tokens
from benchmarks.representation.identity import labels_of, made_with, models_of
from benchmarks.representation.packed_turns import Answer, answer_scenes
from benchmarks.representation.protocol import CLASSES, OURS, RESIZED, chosen_name, default, setting_name
from hf_efficient import TokenPrunerConfig, remember_images
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.evaluation.questions import EVALUATION_SET, TINY_VLM, Scene, load_vlm, pruned

METHODS = (*OURS, "spare", "scope", "divprune", "cen_prune", "visionzip", "tome", "uniform")
BUDGETS = (0.125, 0.03)
WHOLE = "all tokens"
#: Failure -> question families that show it.
FAMILIES = {
    "Pointing": ("point",),
    "Naming places": ("where",),
    "Reading": ("read",),
    "Small things": ("detail",),
    "Many things": ("count", "list"),
}
#: Of these, the ones that are asked at both kinds of positions.
PLACES = ("Pointing", "Naming places")
Row = tuple[str, str, str]  # method, class, positions


def rows_of(methods: Sequence[str], chosen: dict[str, Any] | None) -> dict[Row, dict[str, Any]]:
    """Every method with and without sizes, at both kinds of positions."""
    made: dict[Row, dict[str, Any]] = {}
    for method in methods:
        for name, sizes in CLASSES.items():
            settings = default(method, sizes)
            if chosen is not None and method not in OURS:
                settings = chosen["rows"][chosen_name(method, name)]["settings"]
            for positions in ("original", "compact"):
                made[method, name, positions] = {**settings, "positions": positions}
    return made


def usual(row: Row) -> bool:
    """Whether its positions are those of "auto": original with sizes, compact without."""
    return (row[2] == "original") == CLASSES[row[1]]


class AnswerBook(Book):
    """What was said, by name: a bit or two bytes a question; arguments as of `GradeBook`."""

    def __init__(self, path: Path, scenes: Sequence[Scene], made_with: Mapping[str, str]) -> None:
        super().__init__(path, with_scenes(scenes, made_with))
        self.questions = sum(len(scene.questions) for scene in scenes)

    def __call__(self, name: str, ask: Callable[[], list[list[Answer]]]) -> Said:
        """The answers of this name, (1, questions), asked for if they are not in the file yet."""

        def columns() -> list[str]:
            answers = [answer for row in ask() for answer in row]
            made = (
                np.packbits([answer.right for answer in answers]),
                np.packbits([answer.words == "yes" for answer in answers]),
                np.array([answer.probability for answer in answers], "<f2"),
            )
            return [base64.b64encode(column.tobytes()).decode() for column in made]

        right, yes, confidence = (base64.b64decode(column) for column in self.recall(name, columns))
        chances = np.frombuffer(confidence, "<f2")
        bits = [np.unpackbits(np.frombuffer(c, np.uint8), count=self.questions).astype(bool) for c in (right, yes)]
        return Said(bits[0][None], bits[1][None], chances.astype(float)[None])


def joined(said: Sequence[Said]) -> Said:
    """The answers of several models."""
    return Said(*(np.concatenate([getattr(one, name) for one in said]) for name in ("right", "yes", "confidence")))


def ask(
    arguments: argparse.Namespace, scenes: Sequence[Scene], rows: dict[Row, dict[str, Any]]
) -> tuple[dict[Any, Said], dict[float, int]]:
    """(row or anchor, budget, pictures) -> what all models said; and budget -> tokens that it keeps."""
    book = AnswerBook(arguments.output / "answers.json", scenes, made_with(models_of(arguments.model)))
    every = {question.family for scene in scenes for question in scene.questions}
    before = [scene.image for scene in [*scenes[1:], scenes[0]]]
    found: dict[Any, list[Said]] = {}
    tokens: dict[float, int] = {}
    for label, folder in zip(labels_of(arguments.model), arguments.model, strict=True):
        model, processor = load_vlm(folder)

        def note(key: Any, settings: dict[str, Any] | None, vision_inputs: Any = None) -> None:
            row, budget, pictures = key
            name = " ".join([label, row if settings is None else setting_name(settings), str(budget), str(pictures)])
            config = None if settings is None else TokenPrunerConfig(**{**settings, "budget": budget})
            with pruned(model, processor, config):
                said = book(name, lambda: answer_scenes(
                    model, processor, scenes, vision_inputs=vision_inputs, settle=every,
                    before=before if pictures == 2 else None,
                ))  # fmt: skip
            found.setdefault(key, []).append(said)

        with remember_images(model, size=64):
            for pictures in (1, 2):
                note((WHOLE, 1.0, pictures), None)
            for budget in arguments.budgets:
                tokens[budget] = TokenPrunerConfig(budget=budget).tokens_to_keep(visual_tokens(model))
                note((RESIZED, budget, 1), None, resized(tokens[budget]))
                for row, settings in tqdm(rows.items(), desc=f"{label}, {budget:.1%}"):
                    for pictures in (1, 2) if usual(row) else (1,):
                        note((row, budget, pictures), settings)
    return {key: joined(said) for key, said in found.items()}, tokens


def measure(sheet: Sheet, said: dict[Any, Said], rows: Sequence[Row], budgets: Sequence[float]) -> dict[str, Any]:
    """Failure -> rows with the measured values; what the set does not ask is left out."""
    there = {name: [f for f in families if f in sheet.family] for name, families in FAMILIES.items()}
    measured: dict[str, Any] = {}
    everything = np.ones(len(sheet.family), bool)
    usual_rows = [row for row in rows if usual(row)]
    for budget in budgets:
        anchors: list[tuple[Any, Any]] = [(WHOLE, (WHOLE, 1.0, 1)), (RESIZED, (RESIZED, budget, 1))]
        keys = [*anchors, *((row, (row, budget, 1)) for row in usual_rows)]
        for name, families in there.items():
            if families:
                asked = sheet.of(families)
                values = [(row, {"right": sheet.rate(said[key].right, asked)}) for row, key in keys]
                if name in PLACES:
                    values = values[:2] + at_both_positions(sheet, said, usual_rows, budget, asked)
                measured.setdefault(f"{name} ({', '.join(families)})", {})[budget] = values
        if "exists" in sheet.family:
            measured.setdefault("Hallucination", {})[budget] = [
                (row, {"false yes": sheet.false_yes(said[key]), "missed": sheet.missed(said[key])}) for row, key in keys
            ]
        measured.setdefault("Calibration", {})[budget] = [
            (row, {"calibration error": sheet.calibration_error(said[key]),
                   "confidence minus accuracy": sheet.overconfidence(said[key])}) for row, key in keys
        ]  # fmt: skip
        small = said[RESIZED, budget, 1]
        measured.setdefault("What a smaller image gets wrong", {})[budget] = [
            (row, {"right": sheet.hard(said[key], small)}) for row, key in keys if row != RESIZED
        ]
        two = [(WHOLE, (WHOLE, 1.0, 2)), *((row, (row, budget, 2)) for row in usual_rows)]
        measured.setdefault("The second of two pictures", {})[budget] = [
            (row, {"right": sheet.rate(said[key].right, everything)}) for row, key in two
        ]
    return measured


def at_both_positions(
    sheet: Sheet, said: dict[Any, Said], rows: Sequence[Row], budget: float, asked: np.ndarray
) -> list[tuple[Row, dict[str, Any]]]:
    """For each row accuracies at original and compact positions, and the first minus the second; last, all methods."""
    values: list[tuple[Row, dict[str, Any]]] = []
    gaps: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for row in rows:
        original, compact = (said[(*row[:2], positions), budget, 1].right for positions in ("original", "compact"))
        gap = sheet.difference(original, compact, asked)
        rates = {"original": sheet.rate(original, asked), "compact": sheet.rate(compact, asked)}
        values.append((row, {**rates, "original minus compact": gap}))
        gaps.setdefault(row[1], []).append((original, compact))
    for name, pairs in gaps.items():
        original, compact = (np.mean(rights, axis=0) for rights in zip(*pairs, strict=True))
        gap = sheet.difference(original, compact, asked)
        values.append((("mean of the methods", name, ""), {"original minus compact": gap}))
    return values


def cell(value: dict[str, Any]) -> str:
    """A value in per cent, with its interval."""
    if value["value"] is None:
        return ""
    low, high = value["interval"]
    return f"{100 * value['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def report(measured: dict[str, Any], tokens: dict[float, int]) -> str:
    """A table for every failure."""
    parts = []
    for name, by_budget in measured.items():
        columns: dict[str, dict[str, str]] = {}
        for budget, values in by_budget.items():
            for row, cells in values:
                label = row if isinstance(row, str) else ", ".join(row[:2])
                for kind, value in cells.items():
                    shown = "original" if isinstance(row, str) and name.startswith(PLACES) else kind
                    columns.setdefault(f"{shown}, {tokens[budget]} tokens", {})[label] = cell(value)
        labels = list(dict.fromkeys(label for column in columns.values() for label in column))
        lines = [[label, *(column.get(label, "") for column in columns.values())] for label in labels]
        parts += [f"## {name}", markdown(["per cent (95 % interval)", *columns], lines)]
    return "\n\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "failures")
    made.add_argument("--model", nargs="+", default=[str(TINY_VLM)], help="folders or ids of LLaVAs: training seeds")
    made.add_argument("--evaluation-set", default=str(EVALUATION_SET), help="a folder, or LAYOUT:SEED")
    made.add_argument("--scenes", type=at_least_one, help="at most this many")
    made.add_argument("--methods", nargs="+", choices=REPRESENTATION.names, metavar="METHOD", default=METHODS)
    made.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the visual tokens")
    made.add_argument("--chosen", type=Path, help="chosen.json of equal_footing.py")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    scenes = scenes_of(arguments.evaluation_set, arguments.scenes)
    if arguments.chosen and not arguments.chosen.is_file():
        raise SystemExit(f"--chosen {arguments.chosen} is missing; `equal_footing.py choose` writes it.")
    rows = rows_of(arguments.methods, read_json(arguments.chosen, None) if arguments.chosen else None)
    sheet = Sheet(scenes)
    said, tokens = ask(arguments, scenes, rows)
    measured = measure(sheet, said, list(rows), arguments.budgets)
    write_json(arguments.output / "results.json", {
        "set": Path(arguments.evaluation_set).name, "scenes": len(scenes), "questions": len(sheet.family),
        "models": labels_of(arguments.model), "tokens": tokens, "failures": measured,
    })  # fmt: skip
    write_table(arguments.output / "table.md", report(measured, tokens))


if __name__ == "__main__":
    main()
