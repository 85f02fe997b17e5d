"""What every method costs beside the prefill it precedes: `python -m benchmarks.representation.reduction_cost`.

A LLaVA-1.5-shaped model with random weights (576 visual tokens, a scaled Llama): time of the choice (importance given,
tokens and report made) for each method, of the prefill with K tokens, and KV-cache bytes. Whatever is compared runs in
turn, again and again, in one process; figures are medians over rounds of ratios within a round. "Largest tensor" tells
which methods make a matrix of all pairs (576 · 576 = 331,776).
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from benchmarks.representation.scaled_llava import build, prefill
from benchmarks.representation.token_pruning_speed import clustered, median_ms, race, ratio
from hf_efficient import TokenPrunerConfig, reduce_tokens, token_pruner
from hf_efficient.representation.selection import METHODS


class LargestTensor(TorchDispatchMode):
    """Watches how many numbers the largest tensor made has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)]
        self.numbers = max([self.numbers, *made])
        return out


@torch.no_grad()
def measure(methods: Sequence[str], k: int, layers: int, width: int, words: int, rounds: int) -> dict[str, Any]:
    """Times of the methods and of the prefill with k tokens, in one race."""
    torch.manual_seed(0)
    model, processor = build(layers, width)
    features, importance = clustered(576, width), torch.rand(1, 576)
    prompt = "<image> " + " ".join(f"w{i % 100}" for i in range(words))
    image = torch.rand(3, 336, 336)
    configs = {name: TokenPrunerConfig(method=name, budget=k) for name in methods}
    jobs: dict[str, Any] = {name: partial(reduce_tokens, features, c, importance) for name, c in configs.items()}
    with token_pruner(model, processor, TokenPrunerConfig(budget=k)):
        inputs = processor(images=image, text=prompt, do_rescale=False, return_tensors="pt")
        kept = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        jobs["prefill"] = lambda: prefill(model, inputs, kept)
        seconds = race(jobs, rounds, time.perf_counter)
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


HEAD = "| method | ms | of the prefill | of ID-Pruner | largest tensor (numbers) |"


def table(result: dict[str, Any]) -> str:
    """Costs as Markdown, one block per budget, and KV-cache bytes of LLaVA-1.5-7B in 16 bits."""
    lines = []
    for part in result["parts"]:
        lines += [f"K = {part['tokens']}, prefill {part['prefill ms']:.0f} ms", "", HEAD, "|---" * 5 + "|"]
        for row in sorted(part["rows"], key=lambda row: row["ms"]):
            times = f"{row['ms']:.1f} | {row['of the prefill']:.1%} | {row['of id_pruner']:.2f}"
            lines.append(f"| {row['method']} | {times} | {row['largest tensor']:,} |")
        lines.append("")
    cache = ", ".join(f"{k}: {k * 2 * 32 * 4096 * 2 / 2**20:.0f} MiB" for k in (576, 192, 128, 64, 32, 9))
    lines.append(f"KV cache of K visual tokens in LLaVA-1.5-7B (32 layers, 4096 wide, 16 bits): {cache}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="id_pruner among them")
    parser.add_argument("--layers", type=int, default=16, help="layers of the language model")
    parser.add_argument("--width", type=int, default=2048, help="its hidden size, and that of the features")
    parser.add_argument("--words", type=int, default=40, help="text tokens in the prompt")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "reduction_cost")
    arguments = parser.parse_args()
    parts = [
        measure(arguments.methods, k, arguments.layers, arguments.width, arguments.words, arguments.rounds)
        for k in tqdm(arguments.budgets, desc="budgets")
    ]
    result = {
        "setting": {
            "language model": f"Llama {arguments.layers} x {arguments.width}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": arguments.rounds,
        },
        "parts": parts,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / "table.md").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
