"""Half of the weights zero, anywhere or two of every four: `python -m benchmarks.sparsity.half_zeros`.

The task "moved" of `sparse_finetuning.py`, with its protocol: settings of every method are chosen on held-back texts,
with and without the pattern apart, then the test set is opened, with other seeds. What a pattern costs is the paired
difference of a method with it and without.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import read_json, record_run, write_json, write_table
from benchmarks.harness.tables import markdown, mean_and_deviation, mean_and_interval
from benchmarks.sparsity.pretrained_tasks import TASKS
from benchmarks.sparsity.sparse_finetuning import METHODS, Book, Runs, accuracies, choose
from benchmarks.sparsity.tasks import held_back

TASK, SPARSITY, PATTERN = "moved", 0.5, "2:4"
FREE = ("magnitude", "wanda", "set", "rigl", "bidst")
#: As `METHODS`; every layer of a pattern is equally sparse.
PATTERNED = {
    f"{name}, {PATTERN}": (
        METHODS[name][0] | {"pattern": PATTERN},
        tuple(s for s in METHODS[name][1] if s != "distribution"),
    )
    for name in FREE
}


@contextmanager
def patterned() -> Iterator[None]:
    """Let `sparse_finetuning` know the methods with a pattern."""
    METHODS.update(PATTERNED)
    try:
        yield
    finally:
        for name in PATTERNED:
            del METHODS[name]


def table(runs: Runs, chosen: dict[str, dict[str, Any]]) -> str:
    """Accuracy of each method without and with the pattern, and the differences."""
    tested = {tuple(key.split("|")[2:5]): run["accuracy"] for key, run in runs.items() if "|test|" in key}
    dense = accuracies(tested, "dense", str(SPARSITY))
    rows = [["dense", mean_and_deviation(list(dense.values())), "", "", "", settings(chosen["dense"]), ""]]
    for name in FREE:
        free, bound = (accuracies(tested, one, str(SPARSITY)) for one in (name, f"{name}, {PATTERN}"))
        differences = [[left[seed] - right[seed] for seed in left] for left, right in ((bound, free), (bound, dense))]
        shown = [mean_and_deviation(list(of.values())) for of in (free, bound)]
        used = [settings(chosen[one]) for one in (name, f"{name}, {PATTERN}")]
        rows.append([name, *shown, *map(mean_and_interval, differences), *used])
    heads = ["method", "anywhere", PATTERN, f"{PATTERN} minus anywhere", f"{PATTERN} minus dense"]
    return markdown([*heads, "chosen, anywhere", f"chosen, {PATTERN}"], rows)


def settings(chosen: dict[str, Any]) -> str:
    """For a cell."""
    return ", ".join(f"{name}={value}" for name, value in chosen.items())


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "half_zeros")
    made.add_argument("--seeds", type=int, default=5)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    path = arguments.output / "chosen.json"
    chosen: dict[str, dict[str, Any]] = read_json(path, {})
    book, data = Book(arguments.output / "runs.json", TASK), TASKS[TASK].data()
    with patterned():
        for method in ("dense", *FREE, *PATTERNED):
            if method not in chosen:
                chosen[method] = choose(book, held_back(data), method, SPARSITY)
                write_json(path, chosen)
            for seed in range(arguments.seeds):
                book.accuracy(data, "test", method, SPARSITY, seed, **chosen[method])
    write_table(arguments.output / "table.md", table(book.runs, chosen))


if __name__ == "__main__":
    main()
