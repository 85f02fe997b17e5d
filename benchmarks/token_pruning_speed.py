"""Time and memory of visual token pruning: `python benchmarks/token_pruning_speed.py [--quick] [--only PART]`.

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
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
import transformers
from peer_selectors import attention_map, cdpruner, divprune, visionzip

from hf_efficient import TokenPrunerConfig, reduce_tokens, token_pruner
from hf_efficient.representation.importance import cls_attention

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Job = Callable[[], object]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
SELECTION_CASES = ((576, 64, 1024), (576, 64, 4096), (2880, 160, 1024), (2880, 160, 4096))


def race(jobs: dict[str, Job], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of every job in every round; the jobs of a round run one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_number in range(rounds + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if round_number:  # the first round warms up
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


def median_ms(seconds: list[float]) -> float:
    return round(1e3 * statistics.median(seconds), 3)


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
            "ID-Pruner from q, k": lambda: reduce_tokens(
                features, config, cls_attention(queries[:, :, 0], keys)[:, 1:]
            ),
            "VisionZip from q, k": lambda: visionzip(tokens, attention_map(queries, keys), keys, k),
        }
        seconds = race(jobs, rounds, clock)
        row = {
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


def clustered(n: int, width: int) -> torch.Tensor:
    """Tokens (1, n, width) around a tenth as many centres with a common mean: redundant, as those of pictures are."""
    centres = torch.randn(n // 10, width) + 0.5 * torch.randn(width)
    return (centres[torch.randint(0, len(centres), (n,))] + 0.5 * torch.randn(n, width)).unsqueeze(0)


# --- in a model


def build(layers: int, width: int) -> tuple[Any, Any]:
    """A LLaVA-1.5-shaped model with random weights, and its processor with a home-made tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = {word: i for i, word in enumerate(["<pad>", "<image>", "<unk>", *(f"w{i}" for i in range(100))])}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=round(width * 2.6875),  # 11008 / 4096
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=1))
    return model.eval(), processor


@torch.no_grad()
def in_model(budgets: list[int], layers: int, width: int, words: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """Times, KV-cache bytes and peak memory at every number of kept tokens."""
    model, processor = build(layers, width)
    picture = torch.rand(3, 336, 336)
    prompt = "<image> " + " ".join(f"w{i % 100}" for i in range(words))

    def ask() -> Any:
        return processor(images=picture, text=prompt, do_rescale=False, return_tensors="pt")

    inputs = ask()
    everything = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
    n = everything.pooler_output[0].shape[0]
    full = {"inputs": inputs, "memory": prefill_memory(model, inputs, everything)}
    rows = []
    for k in budgets:
        config = TokenPrunerConfig(budget=k)
        with token_pruner(model, processor, config):
            short = ask()
            kept = model.base_model.get_image_features(short["pixel_values"], return_dict=True)
            memory = prefill_memory(model, short, kept)
        limit = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        limit.pooler_output = [unit[:k] for unit in everything.pooler_output]

        def attached(job: Job, config: TokenPrunerConfig = config) -> Job:
            def run() -> object:
                with token_pruner(model, processor, config):
                    return job()

            return run

        features = torch.stack(list(everything.pooler_output))
        queries, keys = torch.randn(2, 1, 16, n + 1, 64)
        jobs: dict[str, Job] = {
            "selection": lambda f=features, c=config, q=queries, s=keys: reduce_tokens(
                f, c, cls_attention(q[:, :, 0], s)[:, 1:]
            ),
            "prefill, pruned": attached(lambda i=short, f=kept: prefill(model, i, f)),
            "prefill, limit": lambda i=short, f=limit: prefill(model, i, f),
            "prefill, all tokens": lambda: prefill(model, inputs, everything),
            "whole call, pruned": attached(lambda i=short: model(**i)),
            "whole call, all tokens": lambda: model(**inputs),
        }
        seconds = race(jobs, rounds, clock)
        row = {
            "kept": k,
            "of": n,
            "prompt": short["input_ids"].shape[1],
            "milliseconds": {name: median_ms(values) for name, values in seconds.items()},
            "selection / prefill it precedes": ratio(seconds, "selection", "prefill, pruned"),
            "prefill pruned / limit": ratio(seconds, "prefill, pruned", "prefill, limit"),
            "prefill pruned / all tokens": ratio(seconds, "prefill, pruned", "prefill, all tokens"),
            "whole call pruned / all tokens": ratio(seconds, "whole call, pruned", "whole call, all tokens"),
            "token share": short["input_ids"].shape[1] / inputs["input_ids"].shape[1],
            "KV-cache bytes / all tokens": memory["kv_bytes"] / full["memory"]["kv_bytes"],
            "peak memory / all tokens": share(memory["peak_bytes"], full["memory"]["peak_bytes"]),
            **memory,
        }
        rows.append(row)
        print(f"{n} tokens -> {k}, prompt of {row['prompt']}")
        for name, value in row["milliseconds"].items():
            print(f"  {name:34s} {value:10.1f} ms")
        for name in [key for key in row if "/" in key or key == "token share"]:
            print(f"  {name:34s} {row[name] if row[name] is None else round(row[name], 4)}")
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "shape": {
            "vision": "ViT 24 x 1024, 576 tokens",
            "language": f"Llama {layers} x {width}",
            "parameters": parameters,
        },
        "words in the prompt": words,
        "all tokens": full["memory"],
        "rows": rows,
    }


def share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else part / whole


def prefill(model: Any, inputs: Any, features: Any) -> Any:
    """The language model on a prompt whose pictures are encoded already."""
    return model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        mm_encoder_outputs={"image": features},
        use_cache=True,
        logits_to_keep=1,
    )


def prefill_memory(model: Any, inputs: Any, features: Any) -> dict[str, int | None]:
    """KV-cache bytes after a prefill, and how far resident memory rose in it (None where Linux's /proc is absent)."""
    prefill(model, inputs, features)
    gc.collect()
    before = resident(reset_peak=True)
    out = prefill(model, inputs, features)
    after = resident()
    layers = out.past_key_values.layers
    held = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
    return {"kv_bytes": held, "peak_bytes": None if before is None or after is None else after[1] - before[0]}


def resident(reset_peak: bool = False) -> tuple[int, int] | None:
    """Resident bytes of this process, now and at their peak; `reset_peak` gives freed memory back and starts anew."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    if reset_peak:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "kB" in line}
    return sizes["VmRSS:"], sizes["VmHWM:"]


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
            for name in ("prefill pruned / all tokens", "KV-cache bytes / all tokens", "token share"):
                axis.plot(kept, [row[name] for row in rows], marker="o", label=name)
            axis.set(xlabel="tokens kept of 576", title=results[part]["shape"]["language"])
            axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("selection", "model"), help="one of the two parts")
    parser.add_argument("--quick", action="store_true", help="few rounds and a small language model")
    parser.add_argument("--rounds", type=int, help="rounds of every comparison; default 15, 3 with --quick")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time, or CPU time of the process")
    parser.add_argument("--layers", type=int, default=12, help="layers of the language model")
    parser.add_argument("--width", type=int, default=2048, help="hidden size of the language model")
    parser.add_argument("--words", type=int, default=40, help="text tokens in the prompt")
    parser.add_argument("--budgets", type=int, nargs="+", default=[288, 144, 64, 32], help="visual tokens to keep")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "token_pruning_speed")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 15)
    results: dict[str, Any] = {
        "setting": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "dtype": "float32",
            "rounds": rounds,
            "clock": arguments.clock,
        }
    }
    if arguments.only != "model":
        cases = SELECTION_CASES[::2] if arguments.quick else SELECTION_CASES
        results["selection"] = selection(cases, rounds, CLOCKS[arguments.clock])
    if arguments.only != "selection":
        layers, width = (2, 1024) if arguments.quick else (arguments.layers, arguments.width)
        results["model"] = in_model(arguments.budgets, layers, width, arguments.words, rounds, CLOCKS[arguments.clock])
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = f"{arguments.only or 'all'}{'_quick' if arguments.quick else ''}"
    (arguments.output / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, arguments.output / f"{stem}.png")


if __name__ == "__main__":
    main()
