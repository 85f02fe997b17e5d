"""What selection costs beside the prefill it precedes, and what a pruned prefill costs beside a prompt never longer."""

from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu.correctness import deviation
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from benchmarks.harness.timing import Job, clock_of, median_ms, ratio, time_in_turns
from benchmarks.models.redundant_tokens import clustered
from benchmarks.models.scaled_llava import build, prefill
from hf_efficient import TokenPrunerConfig, reduce_tokens, token_pruner

METHODS = ("id_pruner", "itg", "divprune")
WORDS = 40  # of a prompt beside its picture


def language_model(device: str, sizes: Sizes) -> Any:
    """A Llama with random weights, as large as there is memory for, in 16 bits."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=sizes.width, intermediate_size=round(2.6875 * sizes.width),
        num_hidden_layers=sizes.fitting(device), num_attention_heads=max(1, sizes.width // 128),
        max_position_embeddings=16384,
    )  # fmt: skip
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config).bfloat16().eval()


@torch.no_grad()
def selection(device: str, sizes: Sizes, found: Findings) -> None:
    """Every method from N to K features, in turn with the prefill of N and of K of them."""
    model = language_model(device, sizes)
    found.add("layers of the language model", model.config.num_hidden_layers)
    for n, k in sizes.selections:
        torch.manual_seed(0)
        features = clustered(n, sizes.width).to(device, torch.bfloat16)
        prompts = [features.new_zeros(1, count + WORDS, sizes.width).normal_() for count in (n, k)]
        ask = partial(model, use_cache=True, logits_to_keep=1)
        jobs: dict[str, Job] = {"all": partial(ask, inputs_embeds=prompts[0])}
        jobs["kept"] = partial(ask, inputs_embeds=prompts[1])
        jobs |= {m: partial(reduce_tokens, features, TokenPrunerConfig(method=m, budget=k)) for m in METHODS}
        seconds = time_in_turns(jobs, sizes.rounds, clock=clock_of(device))
        found.add(f"N={n}: prefill of all, ms", median_ms(seconds["all"]))
        found.add(f"N={n}, K={k}: prefill of kept / of all", ratio(seconds, "kept", "all"))
        for method in METHODS:
            found.add(f"N={n}, K={k}: {method}, ms", median_ms(seconds[method]))
            found.add(f"N={n}, K={k}: {method} / prefill of kept", ratio(seconds, method, "kept"))


@torch.no_grad()
def pruned_prefill(device: str, sizes: Sizes, found: Findings) -> None:
    """LLaVA with K tokens of ID-Pruner and of ITG against a stock prompt of K tokens, and whole calls."""
    with torch.device(device):
        model, processor = build(sizes.fitting(device), sizes.width, tower=sizes.tower, side=sizes.side)
    model.bfloat16()
    image = torch.rand(3, sizes.side, sizes.side)

    def ask() -> Any:
        made = processor(images=image, text="<image> " + "w1 " * WORDS, do_rescale=False, return_tensors="pt")
        return made.to(device, torch.bfloat16)

    def encoded(inputs: Any) -> Any:
        return model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)

    inputs = ask()
    everything, limit = encoded(inputs), encoded(inputs)
    limit.pooler_output = [unit[: sizes.kept] for unit in everything.pooler_output]
    jobs: dict[str, Job] = {"all": partial(prefill, model, inputs, everything), "call, all": partial(model, **inputs)}
    around = {}
    for method in ("id_pruner", "itg"):
        pruning = partial(token_pruner, model, processor, TokenPrunerConfig(method=method, budget=sizes.kept))
        with pruning():
            short = ask()
            kept = encoded(short)
        jobs[method], jobs[f"call, {method}"] = partial(prefill, model, short, kept), partial(model, **short)
        around[method] = around[f"call, {method}"] = pruning
    jobs["limit"] = partial(prefill, model, short, limit)
    seconds = time_in_turns(jobs, sizes.rounds, clock=clock_of(device), around=around)
    found.add("layers of the language model", len(model.base_model.language_model.layers))
    found.add("prefill of all tokens, ms", median_ms(seconds["all"]))
    for method in ("id_pruner", "itg"):
        found.add(f"{method}: prefill / prompt that was never longer", ratio(seconds, method, "limit"))
        found.add(f"{method}: prefill / prefill of all tokens", ratio(seconds, method, "all"))
        found.add(f"{method}: whole call / call with all tokens", ratio(seconds, f"call, {method}", "call, all"))


@torch.no_grad()
def itg(device: str, sizes: Sizes, found: Findings) -> None:
    """ITG's tokens against those of the CPU, and the time of its steps, for each number of tokens."""
    for n, k in sizes.selections:
        torch.manual_seed(0)
        features = clustered(n, sizes.width).bfloat16()
        moved = features.to(device)
        jobs: dict[str, Job] = {}
        for steps in (0, 1, 5):
            config = TokenPrunerConfig(method="itg", budget=k, lloyd_steps=steps, proportional_attention=True)
            jobs[str(steps)] = partial(reduce_tokens, moved, config)
        here, there = reduce_tokens(features, config), reduce_tokens(moved, config)
        assert here.assignment is not None
        assert there.assignment is not None
        assert there.mass is not None
        differ = float((here.assignment != there.assignment.cpu()).float().mean())
        found.add(f"N={n}, K={k}: share of tokens assigned otherwise than on the CPU", differ, 0.05)
        found.add(f"N={n}, K={k}: masses sum to N, deviation", abs(float(there.mass.sum()) / n - 1), 1e-3)
        if not differ:
            found.add(f"N={n}, K={k}: tokens, deviation", deviation(there.tokens, here.tokens), 0.02)
        seconds = time_in_turns(jobs, sizes.rounds, clock=clock_of(device))
        for name, taken in seconds.items():
            found.add(f"N={n}, K={k}: lloyd_steps={name}, ms", median_ms(taken))
