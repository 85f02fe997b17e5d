"""Half of the weights zero, anywhere or two of every four: `python -m benchmarks.sparsity.half_zeros`.

The task "moved" of `sparse_finetuning.py`, with its protocol: settings of every method are chosen on held-back texts,
with and without the pattern apart, then the test set is opened, with other seeds. What a pattern costs is the paired
difference of a method with it and without.
"""

import argparse

import torch

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import record_run, write_table
from benchmarks.harness.tables import markdown, mean_and_deviation, mean_and_interval
from benchmarks.sparsity.fine_tuning import METHODS, Book, Method, accuracies, listed

TASK, SPARSITY, PATTERN = "moved", 0.5, "2:4"
FREE = ("magnitude", "wanda", "set", "rigl", "bidst")


def patterned(method: Method) -> Method:
    """A method with the pattern, of which every layer is equally sparse."""
    fixed, chosen = method
    return fixed | {"pattern": PATTERN}, tuple(s for s in chosen if s != "distribution")


#: Dense, each method, and each with the pattern.
COMPARED: dict[str, Method] = {name: METHODS[name] for name in ("dense", *FREE)}
COMPARED |= {f"{name}, {PATTERN}": patterned(METHODS[name]) for name in FREE}


def table(book: Book) -> str:
    """Accuracy of each method without and with the pattern, and the differences."""
    tested, chosen = book.tested(TASK), book.chosen[TASK]
    dense = accuracies(tested, "dense", str(SPARSITY))
    rows = [["dense", mean_and_deviation(list(dense.values())), "", "", "", listed(chosen["dense"]), ""]]
    for name in FREE:
        free, bound = (accuracies(tested, one, str(SPARSITY)) for one in (name, f"{name}, {PATTERN}"))
        differences = [[left[seed] - right[seed] for seed in left] for left, right in ((bound, free), (bound, dense))]
        shown = [mean_and_deviation(list(of.values())) for of in (free, bound)]
        used = [listed(chosen[one]) for one in (name, f"{name}, {PATTERN}")]
        rows.append([name, *shown, *map(mean_and_interval, differences), *used])
    heads = ["method", "anywhere", PATTERN, f"{PATTERN} minus anywhere", f"{PATTERN} minus dense"]
    return markdown([*heads, "chosen, anywhere", f"chosen, {PATTERN}"], rows)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "half_zeros")
    made.add_argument("--seeds", type=int, default=5)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    book = Book(arguments.output, COMPARED, SPARSITY)
    book.compare(TASK, COMPARED, [SPARSITY], arguments.seeds)
    write_table(arguments.output / "table.md", table(book))


if __name__ == "__main__":
    main()
