"""Time and memory of visual token pruning.

`python -m benchmarks.representation.token_pruning_speed`; `--quick` takes a minute, `--only` measures one of two parts:

**model**: a LLaVA-1.5-shaped model with random weights (CLIP ViT of 24 layers, 336/14 = 576 tokens; a scaled Llama).
Selection against the prefill it precedes; prefill with K kept tokens against the same stock model on a prompt that
never had more than K (the physical limit); the whole call with all tokens and with K; KV-cache bytes and peak memory of
the prefill.

**selection**: ID-Pruner against selection as the public code of DivPrune, CDPruner and VisionZip does it
(`peer_selectors.py`), from the features alone and from a layer's queries, keys and features.

Whatever is compared is run in turn, again and again, in one process; ratios are medians over those rounds of the ratio
within a round. Absolute times depend on the machine and are written down only to make the ratios readable. On a busy
machine `--clock cpu` with OMP_NUM_THREADS=1 counts the process's own time instead of the wall's.
"""

import argparse
import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json
from benchmarks.harness.timing import CLOCKS, Around, Clock, Job, Seconds, median_ms, ratio, time_in_turns
from benchmarks.models.redundant_tokens import clustered
from benchmarks.models.scaled_llava import build, prefill, prefill_memory
from benchmarks.representation.peer_selectors import attention_map, cdpruner, divprune, visionzip
from hf_efficient import TokenPrunerConfig, reduce_tokens, token_pruner
from hf_efficient.representation.maths.importance import cls_attention

SELECTION_CASES = ((576, 64, 1024), (576, 64, 4096), (2880, 160, 1024), (2880, 160, 4096))


# --- selection alone


@torch.no_grad()
def selection(cases: tuple[tuple[int, int, int], ...], rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """Times of every method for every (N, K, D)."""
    rows = []
    for n, k, width in cases:
        torch.manual_seed(0)
        tokens = clustered(n + 1, width)
        queries, keys = torch.randn(2, 1, 16, n + 1, 64)
        features, importance, maps = tokens[:, 1:].contiguous(), torch.rand(1, n), attention_map(queries, keys)
        image_embeds, text_embeds = torch.randn(1, n, 768), torch.randn(1, 768)
        config = TokenPrunerConfig(budget=k)
        jobs: dict[str, Job] = {
            "ID-Pruner": lambda: reduce_tokens(features, config, importance),
            "DivPrune": lambda: divprune(features[0], k),
            "CDPruner": lambda: cdpruner(features, image_embeds, text_embeds, k),
            "VisionZip, map given": lambda: visionzip(tokens, maps, keys, k),
            "ID-Pruner from q, k": lambda: choose(features, config, queries, keys),
            "VisionZip from q, k": lambda: visionzip(tokens, attention_map(queries, keys), keys, k),
        }
        seconds = time_in_turns(jobs, rounds, clock=clock)
        row: dict[str, Any] = {
            "N": n,
            "K": k,
            "D": width,
            "milliseconds": {name: median_ms(values) for name, values in seconds.items()},
            "ID-Pruner / DivPrune": ratio(seconds, "ID-Pruner", "DivPrune"),
            "ID-Pruner / CDPruner": ratio(seconds, "ID-Pruner", "CDPruner"),
            "ID-Pruner / VisionZip, both from q, k": ratio(seconds, "ID-Pruner from q, k", "VisionZip from q, k"),
            "ID-Pruner / VisionZip, map given": ratio(seconds, "ID-Pruner", "VisionZip, map given"),
        }
        rows.append(row)
        print(f"N={n} K={k} D={width}")
        for name, value in row["milliseconds"].items():
            print(f"  {name:24s} {value:10.2f} ms")
        for name in [key for key in row if "/" in key]:
            print(f"  {name:40s} {row[name]:.3f}")
    return rows


# --- in a model


@torch.no_grad()
def in_model(budgets: list[int], layers: int, width: int, words: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """Times, KV-cache bytes and peak memory at every number of kept tokens."""
    model, processor = build(layers, width)
    image = torch.rand(3, 336, 336)
    prompt = "<image> " + " ".join(f"w{i % 100}" for i in range(words))

    def ask() -> Any:
        return processor(images=image, text=prompt, do_rescale=False, return_tensors="pt")

    def pruning(k: int) -> contextlib.AbstractContextManager[Any]:
        return token_pruner(model, processor, TokenPrunerConfig(budget=k))

    inputs = ask()
    everything = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
    n = everything.pooler_output[0].shape[0]
    features = torch.stack(list(everything.pooler_output))
    queries, keys = torch.randn(2, 1, 16, n + 1, 64)
    memory = {n: prefill_memory(model, inputs, everything)}
    jobs: dict[str, Job] = {
        "prefill, all tokens": lambda: prefill(model, inputs, everything),
        "whole call, all tokens": lambda: model(**inputs),
    }
    around: dict[str, Around] = {}
    for k in budgets:
        with pruning(k):
            short = ask()
            kept = model.base_model.get_image_features(short["pixel_values"], return_dict=True)
            memory[k] = prefill_memory(model, short, kept)
        limit = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        limit.pooler_output = [unit[:k] for unit in everything.pooler_output]
        config = TokenPrunerConfig(budget=k)
        jobs[f"selection, {k}"] = partial(choose, features, config, queries, keys)
        jobs[f"prefill, pruned to {k}"] = partial(prefill, model, short, kept)
        jobs[f"prefill, limit {k}"] = partial(prefill, model, short, limit)
        jobs[f"whole call, pruned to {k}"] = partial(model.__call__, **short)
        around[f"prefill, pruned to {k}"] = around[f"whole call, pruned to {k}"] = partial(pruning, k)
    seconds = time_in_turns(jobs, rounds, clock=clock, around=around)
    rows = [comparison(seconds, memory, k, n, inputs["input_ids"].shape[1]) for k in budgets]
    milliseconds = {name: median_ms(values) for name, values in seconds.items()}
    for name, value in milliseconds.items():
        print(f"  {name:34s} {value:10.1f} ms")
    return {
        "shape": {
            "vision": "ViT 24 x 1024, 576 tokens",
            "language": f"Llama {layers} x {width}",
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "words in the prompt": words,
        "all tokens": memory[n],
        "milliseconds": milliseconds,
        "rows": rows,
    }


def comparison(seconds: Seconds, memory: dict[int, dict[str, Any]], k: int, n: int, whole: int) -> dict[str, Any]:
    """A row of the table, printed too: `k` of `n` visual tokens against the limit and against a prompt of `whole`."""
    row = {
        "kept": k,
        "prompt": whole - n + k,
        "selection / prefill it precedes": ratio(seconds, f"selection, {k}", f"prefill, pruned to {k}"),
        "prefill pruned / limit": ratio(seconds, f"prefill, pruned to {k}", f"prefill, limit {k}"),
        "prefill pruned / all tokens": ratio(seconds, f"prefill, pruned to {k}", "prefill, all tokens"),
        "whole call pruned / all tokens": ratio(seconds, f"whole call, pruned to {k}", "whole call, all tokens"),
        "prompt length / all tokens": (whole - n + k) / whole,
        "KV-cache bytes / all tokens": share(memory[k]["kv_bytes"], memory[n]["kv_bytes"]),
        "peak memory / all tokens": share(memory[k]["peak_bytes"], memory[n]["peak_bytes"]),
        **memory[k],
    }
    print(f"{n} tokens -> {k}, prompt of {row['prompt']}")
    for name in [key for key in row if "/" in key]:
        print(f"  {name:34s} {row[name] if row[name] is None else round(row[name], 4)}")
    return row


def choose(features: Tensor, config: TokenPrunerConfig, queries: Tensor, keys: Tensor) -> object:
    """All that pruning adds to a call: importance from the layer's queries and keys, selection, report."""
    return reduce_tokens(features, config, cls_attention(queries[:, :, 0], keys)[:, 1:])


def share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else part / whole


# --- results


def plot(results: dict[str, Any], path: Path) -> None:
    """Selection times as bars, prefill and KV cache against kept tokens as lines."""
    parts = [part for part in ("selection", "model") if part in results]
    figure, axes = plt.subplots(1, len(parts), figsize=(7 * len(parts), 4.6), squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        if part == "selection":
            names = list(results[part][0]["milliseconds"])
            for i, name in enumerate(names):
                heights = [row["milliseconds"][name] for row in results[part]]
                axis.bar([x + 0.13 * i for x in range(len(heights))], heights, 0.13, label=name)
            labels = [f"N={row['N']}\nK={row['K']}\nD={row['D']}" for row in results[part]]
            axis.set_xticks([x + 0.32 for x in range(len(labels))], labels)
            axis.set(yscale="log", ylabel="ms", title="selection alone")
        else:
            rows = results[part]["rows"]
            kept = [row["kept"] for row in rows]
            for name in ("prefill pruned / all tokens", "KV-cache bytes / all tokens", "prompt length / all tokens"):
                axis.plot(kept, [row[name] for row in rows], marker="o", label=name)
            axis.set(xlabel="tokens kept of 576", title=results[part]["shape"]["language"])
            axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "token_pruning_speed")
    made.add_argument("--only", choices=("selection", "model"), help="one of the two parts")
    made.add_argument("--quick", action="store_true", help="few rounds and a small language model")
    made.add_argument(
        "--rounds",
        type=int,
        help="rounds of every comparison; default 15 for selection, 5 for the model, 3 with --quick",
    )
    made.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time, or CPU time of the process")
    made.add_argument("--layers", type=int, default=24, help="layers of the language model")
    made.add_argument("--width", type=int, default=2560, help="hidden size of the language model")
    made.add_argument("--words", type=int, default=40, help="text tokens in the prompt")
    made.add_argument("--budgets", type=int, nargs="+", default=[288, 144, 64, 32], help="visual tokens to keep")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    rounds = {part: arguments.rounds or (3 if arguments.quick else n) for part, n in (("selection", 15), ("model", 5))}
    results: dict[str, Any] = {"setting": {"dtype": "float32", "rounds": rounds, "clock": arguments.clock}}
    if arguments.only != "model":
        cases = SELECTION_CASES[::2] if arguments.quick else SELECTION_CASES
        results["selection"] = selection(cases, rounds["selection"], CLOCKS[arguments.clock])
    if arguments.only != "selection":
        layers, width = (2, 1024) if arguments.quick else (arguments.layers, arguments.width)
        results["model"] = in_model(
            arguments.budgets, layers, width, arguments.words, rounds["model"], CLOCKS[arguments.clock]
        )
    stem = f"{arguments.only or 'all'}{'_quick' if arguments.quick else ''}"
    write_json(arguments.output / f"{stem}.json", results)
    plot(results, arguments.output / f"{stem}.png")


if __name__ == "__main__":
    main()
