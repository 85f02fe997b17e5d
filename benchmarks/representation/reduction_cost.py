"""What every method costs beside the prefill it precedes: `python -m benchmarks.representation.reduction_cost`.

A LLaVA-1.5-shaped model with random weights (576 visual tokens, a scaled Llama): time of the choice (importance given,
tokens and report made) for each method, of the prefill with K tokens, and KV-cache bytes. Whatever is compared runs in
turn, again and again, in one process; figures are medians over rounds of ratios within a round. "Largest tensor" tells
which methods make a matrix of all pairs (576 · 576 = 331,776). `--exchange-passes 1 5` adds rows of ID-Pruner with so
many passes of exchanges at most; they end with the first that changes nothing.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.harness.timing import median_ms, ratio, time_in_turns
from benchmarks.models.redundant_tokens import clustered
from benchmarks.models.scaled_llava import build, prefill
from hf_efficient import TokenPrunerConfig, reduce_tokens, token_pruner
from hf_efficient.methods import REPRESENTATION


class LargestTensor(TorchDispatchMode):
    """Watches how many numbers the largest tensor made has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)]
        self.numbers = max([self.numbers, *made])
        return out


@torch.no_grad()
def measure(
    methods: Mapping[str, dict[str, Any]], k: int, layers: int, width: int, words: int, rounds: int
) -> dict[str, Any]:
    """Times of the methods (settings by name) and of the prefill with k tokens, in one race."""
    torch.manual_seed(0)
    model, processor = build(layers, width)
    features, importance = clustered(576, width), torch.rand(1, 576)
    prompt = "<image> " + " ".join(f"w{i % 100}" for i in range(words))
    image = torch.rand(3, 336, 336)
    configs = {name: TokenPrunerConfig(**settings, budget=k) for name, settings in methods.items()}
    jobs: dict[str, Any] = {name: partial(reduce_tokens, features, c, importance) for name, c in configs.items()}
    with token_pruner(model, processor, TokenPrunerConfig(budget=k)):
        inputs = processor(images=image, text=prompt, do_rescale=False, return_tensors="pt")
        kept = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        jobs["prefill"] = lambda: prefill(model, inputs, kept)
        seconds = time_in_turns(jobs, rounds)
    rows = []
    for name in methods:
        with LargestTensor() as largest:
            jobs[name]()
        row: dict[str, Any] = {"method": name, "ms": median_ms(seconds[name]), "largest tensor": largest.numbers}
        row["of the prefill"] = round(ratio(seconds, name, "prefill"), 4)
        row["of id_pruner"] = round(ratio(seconds, name, "id_pruner"), 3)
        rows.append(row)
    prompt_length = int(inputs["input_ids"].shape[1])
    return {"tokens": k, "prompt": prompt_length, "prefill ms": median_ms(seconds["prefill"]), "rows": rows}


def table(result: dict[str, Any]) -> str:
    """Costs as Markdown, one block per budget, and KV-cache bytes of LLaVA-1.5-7B in 16 bits."""
    lines, head = [], ["method", "ms", "of the prefill", "of ID-Pruner", "largest tensor (numbers)"]
    for part in result["parts"]:
        rows = [
            [row["method"], f"{row['ms']:.1f}", f"{row['of the prefill']:.1%}", f"{row['of id_pruner']:.2f}",
             f"{row['largest tensor']:,}"]
            for row in sorted(part["rows"], key=lambda row: row["ms"])
        ]  # fmt: skip
        lines += [f"K = {part['tokens']}, prefill {part['prefill ms']:.0f} ms", "", markdown(head, rows), ""]
    cache = ", ".join(f"{k}: {k * 2 * 32 * 4096 * 2 / 2**20:.0f} MiB" for k in (576, 192, 128, 64, 32, 9))
    lines.append(f"KV cache of K visual tokens in LLaVA-1.5-7B (32 layers, 4096 wide, 16 bits): {cache}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "reduction_cost")
    made.add_argument("--budgets", type=int, nargs="+", default=[64, 32])
    names = REPRESENTATION.names
    made.add_argument("--methods", nargs="+", choices=names, default=list(names), help="id_pruner among them")
    made.add_argument("--exchange-passes", type=int, nargs="+", default=[], help="rows of ID-Pruner with as many")
    made.add_argument("--layers", type=int, default=16, help="layers of the language model")
    made.add_argument("--width", type=int, default=2048, help="its hidden size, and that of the features")
    made.add_argument("--words", type=int, default=40, help="text tokens in the prompt")
    made.add_argument("--rounds", type=int, default=7)
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    methods: dict[str, dict[str, Any]] = {name: {"method": name} for name in arguments.methods}
    for passes in arguments.exchange_passes:
        methods[f"id_pruner, {passes} passes"] = {"method": "id_pruner", "exchange_passes": passes}
    parts = [
        measure(methods, k, arguments.layers, arguments.width, arguments.words, arguments.rounds)
        for k in tqdm(arguments.budgets, desc="budgets")
    ]
    result = {
        "setting": {
            "language model": f"Llama {arguments.layers} x {arguments.width}",
            "rounds": arguments.rounds,
        },
        "parts": parts,
    }
    write_json(arguments.output / "results.json", result)
    write_table(arguments.output / "table.md", table(result))


if __name__ == "__main__":
    main()
