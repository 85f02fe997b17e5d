"""Pretrained networks made sparse while they learn a new task: `python -m benchmarks.sparsity.sparse_finetuning`.

Tasks (`--tasks`): "moved", an MLP over word counts that has learned ten of the twenty newsgroups and learns the other
ten; MiniLM-L6's top two layers (3.5 million weights; what the frozen layers below say of a text is computed once) on
the twenty newsgroups, on sentiment of film reviews, and on R52's topics; and DINOv2-S's first two layers (as many) on
"garments", 3,000 pictures of Fashion-MNIST. Methods: dense; one-shot pruning by magnitude and by Wanda, then training
with a fixed mask; gradual magnitude pruning (GMP); movement pruning, hard and soft; SET, MEST, RigL and BiDST from the
largest weights; RigL and BiDST that start dense and fall along GMP's curve; SET, RigL and BiDST that go on from
Wanda's mask; the dense network and BiDST with S2-SAM.

Settings of every method (`GRID`, what it reads of it) are chosen one after the other on texts held back from training,
at 95 % sparsity, two seeds (`chosen.json`), but learning rate and share of weights exchanged together, for the larger
the steps, the fewer exchanges are borne. With `--like TASK` they are taken from that task, from RigL's where the method
was not run there, and the learning rate alone is searched, with one seed; "garments" is like "newsgroups". Then the
test set is opened, with other seeds. Steps, batches, Adam and the cosine are the same for all. Every run is written
when it ends and not done again. Intervals are of seeds, paired.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch

from benchmarks.harness.plots import plot_panels
from benchmarks.harness.results import record_run, write_table
from benchmarks.harness.tables import markdown, mean_and_deviation, mean_and_interval
from benchmarks.sparsity.fine_tuning import METHODS, Book, accuracies, is_dense, listed
from benchmarks.sparsity.pretrained_tasks import TASKS
from benchmarks.sparsity.tasks import comparison_parser

SPARSITIES = (0.9, 0.95)


def table(book: Book) -> str:
    """A table a task: accuracy, and BiDST's differences from each other method."""
    parts = []
    for task in book.chosen:
        tested = book.tested(task)
        sparsities = sorted({s for _, s, _ in tested} - {"0.0"})
        rows = []
        for method in METHODS:
            cells: list[str] = []
            for s in sparsities:
                of = accuracies(tested, method, s)
                cells.append(mean_and_deviation(list(of.values())))
                for ours in ("bidst", "bidst, dense first"):
                    own = accuracies(tested, ours, s)
                    both = [own[seed] - of[seed] for seed in own if seed in of]
                    cells.append(mean_and_interval(both) if both and ours != method else "")
            if any(cells):
                rows.append([method, *cells, listed(book.chosen[task].get(method, {}))])
        shares = [f"{float(s):.0%}" for s in sparsities]
        heads = [h for s in shares for h in (f"{s} zeros", f"{s}: BiDST minus it", f"{s}: dense first minus it")]
        parts.append(f"**{task}**\n\n{markdown(['method', *heads, 'chosen'], rows)}\n")
    return "\n".join(parts)


def plot(book: Book, path: Path) -> None:
    """Accuracy over sparsity: a panel a task, a line a method."""
    panels: dict[str, dict[str, list[tuple[str, list[float]]]]] = {}
    dense: dict[str, float] = {}
    for task in book.chosen:
        tested = book.tested(task)
        if not tested:
            continue
        sparsities = sorted({s for _, s, _ in tested} - {"0.0"})
        lines = {
            method: [(f"{float(s):.0%}", list(accuracies(tested, method, s).values())) for s in sparsities]
            for method in METHODS
            if not is_dense(method)
        }
        panels[task] = {m: [p for p in line if p[1]] for m, line in lines.items() if any(p[1] for p in line)}
        dense |= {task: mean(accuracies(tested, "dense", "").values())} if accuracies(tested, "dense", "") else {}
    if panels:
        plot_panels(panels, path, "zeros", "bidst", dense)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = comparison_parser(__doc__, "sparse_finetuning", TASKS, METHODS, SPARSITIES)
    said = (
        "take settings as chosen in this task (RigL's where there are none), and search learning rates, with one seed"
    )
    made.add_argument("--like", choices=TASKS, help=said)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    record_run(arguments.output)
    book = Book(arguments.output, METHODS)
    for task in arguments.tasks:
        book.compare(task, arguments.methods, arguments.sparsities, arguments.seeds, arguments.like)
    plot(book, arguments.output / "accuracy.png")
    write_table(arguments.output / "table.md", table(book))


if __name__ == "__main__":
    main()
