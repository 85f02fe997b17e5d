"""Requests a second of vLLM with 576 visual tokens and with fewer, stock vLLM beside, at several concurrencies.

A LLaVA-shaped model with random weights, whose prefill takes most of the time, and pictures of noise, every one new,
so that no cache helps. So many requests are held in flight: one that ends lets the next one in. Written down are wall
time, processor time (which other load on the machine changes little), time to the first token and the tokens of a
request in the key-value cache. Both engines run in this process, one after the other.
"""

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.serving.engines import close_engine, make_engine

SIDE, PATCH = 336, 14


def parser() -> argparse.ArgumentParser:
    made = common_parser(__doc__, "serving/throughput")
    made.add_argument("--budget", type=at_least_one, default=64, help="visual tokens of 576")
    made.add_argument("--method", default="id_pruner")
    made.add_argument("--concurrency", nargs="+", type=at_least_one, default=[1, 4, 16, 32])
    made.add_argument("--requests", type=at_least_one, default=2, help="requests per place in flight")
    made.add_argument("--tokens", type=at_least_one, default=8, help="tokens generated for a request")
    made.add_argument("--width", type=at_least_one, default=768, help="of the language model")
    made.add_argument("--layers", type=at_least_one, default=8, help="of the language model")
    return made


def build(folder: Path, width: int, layers: int) -> None:
    """Save a LLaVA with random weights: CLIP's raster of 24 x 24 patches, a small encoder, a Llama."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", *(f"w{i}" for i in range(95))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["<image>"])
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    text = hf.LlamaConfig(
        hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, vocab_size=len(words), max_position_embeddings=1024, pad_token_id=0,
    )  # fmt: skip
    vision = hf.CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=4, image_token_index=4, vision_feature_layer=-1
    )
    torch.manual_seed(0)
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size), tokenizer=tokenizer,
        patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


def request(seed: int) -> dict[str, Any]:
    """A picture of noise that no other request has, and 24 words."""
    noise = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((SIDE, SIDE))
    words = " ".join(f"w{(seed + i) % 95}" for i in range(24))
    return {"prompt": f"<image> {words}", "multi_modal_data": {"image": image}}


def measure(llm: Any, concurrency: int, count: int, tokens: int, first: int) -> dict[str, float]:
    """Requests a second, by wall and by processor time, and the median time to the first token of a request."""
    from vllm import SamplingParams

    engine, greedy = llm.llm_engine, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    started: dict[str, float] = {}
    waits: dict[str, float] = {}
    lengths, sent, done = [], 0, 0
    asked = [request(first + i) for i in range(count)]
    wall, processor = time.perf_counter(), time.process_time()
    while done < count:
        while sent < count and sent - done < concurrency:
            name = f"{first}-{sent}"
            started[name] = time.perf_counter()
            engine.add_request(name, asked[sent], greedy)
            sent += 1
        for output in engine.step():
            if output.outputs[0].token_ids:
                waits.setdefault(output.request_id, time.perf_counter() - started[output.request_id])
            if output.finished:
                done += 1
                lengths.append(len(output.prompt_token_ids) + tokens)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "per_second": count / wall,
        "per_processor_second": count / processor,
        "first_token": statistics.median(waits.values()),
        "cached_tokens": statistics.mean(lengths),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line a concurrency: the pruned engine's figures over those of the stock one."""
    head = ["in flight", "requests a second, wall", "by processor time", "time to first token", "tokens in the cache"]
    lines = []
    for key, row in rows.items():
        stock, ours = row["stock"], row["pruned"]
        lines.append([
            key,
            f"{stock['per_second']:.2f} → {ours['per_second']:.2f} ({ours['per_second'] / stock['per_second']:.2f}×)",
            f"{ours['per_processor_second'] / stock['per_processor_second']:.2f}×",
            f"{stock['first_token']:.2f} → {ours['first_token']:.2f} s",
            f"{stock['cached_tokens']:.0f} → {ours['cached_tokens']:.0f}",
        ])  # fmt: skip
    return markdown(head, lines)


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    names = ("budget", "method", "requests", "tokens", "width", "layers")
    rows = Rows(arguments.output / "throughput.json", arguments, names)
    levels = [c for c in arguments.concurrency if str(c) not in rows.rows]
    found: dict[int, dict[str, Any]] = {c: {} for c in levels}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), arguments.width, arguments.layers)
        pruner = {"method": arguments.method, "budget": arguments.budget}
        for name, config in (("stock", None), ("pruned", pruner)) if levels else ():
            llm = make_engine(folder, config, max_num_seqs=max(levels), enable_prefix_caching=False)
            measure(llm, 1, 1, arguments.tokens, 10_000)  # to warm up
            for level in levels:
                found[level][name] = measure(llm, level, level * arguments.requests, arguments.tokens, level * 100)
                print(name, level, found[level][name], flush=True)
            close_engine(llm)
            del llm
            gc.collect()
    for level in levels:
        rows.add(str(level), found[level])
    write_table(arguments.output / "table.md", table(rows.rows))
    plot(rows.rows, arguments.output / "throughput.png")


def plot(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Requests per second of processor time by concurrency."""
    from benchmarks.harness.plots import plt, save

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name in ("stock", "pruned"):
        axes.plot(list(rows), [row[name]["per_processor_second"] for row in rows.values()], marker="o", label=name)
    axes.set(xlabel="requests in flight", ylabel="requests a second of processor time", ylim=(0, None))
    axes.legend()
    save(figure, path)


if __name__ == "__main__":
    main()
