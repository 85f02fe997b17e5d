"""2:4 layers on a GPU: `python -m benchmarks.sparsity.semi_structured`. Needs a GPU, Ampere or later.

Linear layers of the sizes of a language model, pruned to 2:4, as `compress(model, backend="semi_structured")` makes
them, beside the same layers dense: time of a forward for one activation up to thousands, in turns, and how far outputs
differ. That 2:4 halves the arithmetic is the limit, a ratio of 2; with few activations the memory of the weights
decides, and half of it is read. `auto` says what `compress(model)` would choose. Writes JSON and a table.
"""

import argparse
import copy
from typing import Any

import torch
from torch import nn

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.harness.timing import median_ms, ratio, time_in_turns
from hf_efficient import compress
from hf_efficient.sparsity.pattern import Groups, NMPattern

# (outputs, inputs): query, MLP up and down of models of 1, 7 and 70 billion weights
SHAPES = [(2048, 2048), (8192, 2048), (2048, 8192), (4096, 4096), (11008, 4096), (4096, 11008), (28672, 8192)]
TOKENS = [1, 16, 128, 512, 4096]
CALLS = 20  # forwards that are timed together


def two_of_four(shape: tuple[int, int], dtype: torch.dtype, device: str) -> nn.Sequential:
    """A layer with random weights, the two largest of every four kept."""
    layer = nn.Linear(shape[1], shape[0], device=device, dtype=dtype)
    weight = layer.weight.data.flatten()
    best = Groups.along(NMPattern(2, 4), shape, 1).best(weight.abs())
    layer.weight.data = torch.zeros_like(weight).index_copy_(0, best, weight[best]).view(shape)
    return nn.Sequential(layer).eval()


@torch.no_grad()
def measured(shape: tuple[int, int], tokens: int, dtype: torch.dtype, device: str = "cuda") -> dict[str, Any]:
    """Times of the dense and the 2:4 layer, and the largest deviation of an output relative to the largest output."""
    torch.manual_seed(0)
    dense = two_of_four(shape, dtype, device)
    sparse = compress(copy.deepcopy(dense), backend="semi_structured")
    auto = compress(copy.deepcopy(dense), tokens=tokens)
    x = torch.randn(tokens, shape[1], device=device, dtype=dtype)

    def forwards(model: nn.Module) -> None:
        for _ in range(CALLS):
            model(x)
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = time_in_turns({"dense": lambda: forwards(dense), "2:4": lambda: forwards(sparse)}, seconds=1.0)
    expected = dense(x).float()
    return {
        "shape": list(shape),
        "tokens": tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "dense_ms": median_ms(seconds["dense"]) / CALLS,
        "faster": ratio(seconds, "dense", "2:4"),
        "deviation": float((sparse(x).float() - expected).abs().max() / expected.abs().max()),
        "auto": type(auto[0].weight).__name__ != "Parameter",  # type: ignore[index]
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Times faster than dense, a row for each size."""
    head = ["layer (outputs, inputs)", "dtype", *(f"{tokens} activations" for tokens in TOKENS), "largest deviation"]
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        for shape in SHAPES:
            mine = [row for row in rows if row["dtype"] == dtype and row["shape"] == list(shape)]
            cells = [f"{row['faster']:.2f}{' (auto)' if row['auto'] else ''}" for row in mine]
            lines.append([str(shape), dtype, *cells, f"{max(row['deviation'] for row in mine):.1e}"])
    return markdown(head, lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    return common_parser(__doc__, "semi_structured")


def main() -> None:
    arguments = parser().parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a GPU: torch.cuda.is_available() is False.")
    record_run(arguments.output)
    rows = [measured(s, t, d) for d in (torch.bfloat16, torch.float16) for s in SHAPES for t in TOKENS]
    write_json(arguments.output / "results.json", {"gpu": torch.cuda.get_device_name(), "rows": rows})
    write_table(arguments.output / "table.md", table(rows))


if __name__ == "__main__":
    main()
