"""The field's protocol run by lmms-eval, beside published numbers. Needs a GPU, the Hub, and `make lmms-eval`.

    python -m benchmarks.representation.field_lmms --model llava-hf/llava-1.5-7b-hf --methods itg id_pruner

asks the five tasks of `field_retention` with lmms-eval's prompts and scores, which papers use too: with all tokens, and
with every method and budget. Each row is a run of `hf-efficient eval`; rows that are there already are not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.representation.field_retention import BUDGETS, PUBLISHED, TABLES, table

#: name in the table -> lmms-eval's task, its score, and what makes per cent of it.
SCORES = {
    "gqa": ("gqa", "exact_match,none", 100),
    "scienceqa": ("scienceqa_img", "exact_match,none", 100),
    "textvqa": ("textvqa_val", "exact_match,none", 100),
    "pope": ("pope", "pope_f1_score,none", 100),
    "mme": ("mme", "mme_perception_score,none", 1),
}
OWN = Path(".venv-lmms/bin/python")


def rows_of(arguments: argparse.Namespace, kind: str) -> dict[str, list[str]]:
    """Row of the table -> options of the pruner; the first keeps all tokens."""
    budgets = arguments.budgets or [str(budget) for budget in BUDGETS.get(kind, (0.25, 0.1))]
    rows = {"all tokens": ["--budget", "1.0"]}
    for method in arguments.methods:
        rows |= {f"{method}, {budget}": ["--method", method, "--budget", budget] for budget in budgets}
    return rows


def command(arguments: argparse.Namespace, options: list[str], output: Path) -> list[str]:
    """The run of one row."""
    line = [str(arguments.python), "-m", "hf_efficient.cli", "eval", arguments.model, *options]
    line += ["--tasks", ",".join(SCORES[task][0] for task in arguments.tasks), "--output", str(output)]
    line += ["--batch-size", str(arguments.batch_size)]
    line += [] if arguments.limit is None else ["--limit", str(arguments.limit)]
    line += [] if arguments.device is None else ["--device", arguments.device]
    return line if arguments.lmms_arguments is None else [*line, f"--lmms-arguments={arguments.lmms_arguments}"]


def scores_in(output: Path, tasks: list[str]) -> dict[str, float] | None:
    """Task -> score, of the latest results in a row's folder; None where there are none of all tasks."""
    for path in sorted(output.rglob("*_results.json"), reverse=True):
        found: dict[str, Any] = json.loads(path.read_text())["results"]
        if all(SCORES[task][0] in found for task in tasks):
            return {task: found[SCORES[task][0]][SCORES[task][1]] * SCORES[task][2] for task in tasks}
    return None


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "field_lmms")
    made.add_argument("--model", default="llava-hf/llava-1.5-7b-hf", help="folder or id")
    made.add_argument("--methods", nargs="+", default=["itg", "id_pruner"])
    made.add_argument("--budgets", nargs="+", help="counts, or shares with a point")
    made.add_argument("--tasks", nargs="+", choices=SCORES, default=list(SCORES))
    made.add_argument("--limit", type=at_least_one, help="at most this many questions of each task")
    made.add_argument("--batch-size", type=at_least_one, default=8)
    made.add_argument("--device", help="such as cuda:0 (default: an accelerator if there is one)")
    made.add_argument("--lmms-arguments", help="handed on to lmms-eval")
    made.add_argument(
        "--python", type=Path, default=OWN if OWN.exists() else Path(sys.executable), help="that has lmms-eval"
    )
    return made


def main() -> None:
    """Run the rows that are missing, and write the table."""
    arguments = parser().parse_args()
    record_run(arguments.output)

    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(arguments.model).model_type
    scores: dict[str, dict[str, float]] = {}
    for name, options in rows_of(arguments, kind).items():
        folder = arguments.output / "runs" / name.replace(", ", "_").replace(" ", "_")
        found = scores_in(folder, arguments.tasks)
        if found is None:
            subprocess.run(command(arguments, options, folder), check=True)
            found = scores_in(folder, arguments.tasks)
        if found is None:
            raise SystemExit(f"lmms-eval wrote no results of {arguments.tasks} into {folder}.")
        scores[name] = found
    published = json.loads((PUBLISHED / TABLES[kind]).read_text()) if kind in TABLES else None
    write_json(arguments.output / "results.json", {"model": arguments.model, "scores": scores})
    write_table(arguments.output / "table.md", table(scores, published))


if __name__ == "__main__":
    main()
