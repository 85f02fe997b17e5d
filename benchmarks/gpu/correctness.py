"""Pruned prompts on a device against the CPU in float32 with eager attention, for every attention there is."""

import contextlib
import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from benchmarks.models.scaled_llava import build, prefill
from hf_efficient import TokenPrunerConfig, reduce_tokens, token_pruner

#: Whether sizes are counted (proportional attention), which flash and flex attention cannot.
CASES = {"ID-Pruner": ("id_pruner", False), "ITG": ("itg", False), "ITG with sizes": ("itg", True)}
EXACT = 1e-3  # of the largest logit, float32 against float32
WORSE = 3.0  # error of 16 bits with pruned tokens, times that of the stock model with all tokens
Settings = dict[str, Any]


def attentions() -> dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[Any]]]]:
    """Name -> the name that transformers has for it, and what to run it in."""
    flash = "flash_attention_2" if find_spec("flash_attn") else "sdpa"
    pinned = contextlib.nullcontext if find_spec("flash_attn") else lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    plain = contextlib.nullcontext
    return {"sdpa": ("sdpa", plain), "flash": (flash, pinned), "flex": ("flex_attention", plain)}


@torch.no_grad()
def correctness(device: str, sizes: Sizes, found: Findings) -> None:
    """Kept tokens, logits and generated tokens."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    made = [build(*sizes.exact, tower=sizes.tower, side=sizes.side, attention=a) for a in ("eager", "sdpa")]
    (reference, processor), (model, _) = made
    model.load_state_dict({k: v.bfloat16().to(v.dtype) for k, v in reference.state_dict().items()})
    reference.load_state_dict(model.state_dict())  # numbers that 16 bits can hold
    image = torch.rand(3, sizes.side, sizes.side, generator=torch.Generator().manual_seed(0))
    ask = lambda: processor(  # noqa: E731
        images=image, text="<image> " + "w1 w2 w3 w4 " * 8, do_rescale=False, return_tensors="pt"
    )
    same_selection(reference, ask(), device, sizes, found)
    model.to(device)
    for name, (method, counted) in CASES.items():
        config = TokenPrunerConfig(method=method, budget=sizes.kept, proportional_attention=counted)
        in_float32(name, reference, model, processor, ask, config, device, found)
    model = model.bfloat16()
    for attention in sizes.attentions:
        in_bfloat16(attention, reference, model, processor, ask, device, sizes, found)


def first(error: BaseException) -> str:
    """The first line of an error, cut."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def same_selection(reference: Any, inputs: Any, device: str, sizes: Sizes, found: Findings) -> None:
    """The same features, in 16 bits, on the CPU and on the device: the same tokens are kept."""
    features = torch.stack(list(reference.base_model.get_image_features(**pixels(inputs)).pooler_output)).bfloat16()
    for method in ("id_pruner", "itg", "divprune"):
        config = TokenPrunerConfig(method=method, budget=sizes.kept)
        here, there = reduce_tokens(features, config), reduce_tokens(features.to(device), config)
        differ = 1 - len(set(here.indices[0].tolist()) & set(there.indices[0].tolist())) / here.indices.shape[1]
        found.add(f"{method}: share of indices that differ from the CPU's", differ, 0.05)
        found.add(f"{method}: tokens, deviation", deviation(there.tokens, here.tokens), 0.05 + differ)


def in_float32(
    name: str, reference: Any, model: Any, processor: Any, ask: Callable[[], Any], config: TokenPrunerConfig,
    device: str, found: Findings,
) -> None:  # fmt: skip
    """The whole call from pixels on: the same tokens, logits and answer as on the CPU."""
    results = []
    for one, where in ((reference, "cpu"), (model, device)):
        with token_pruner(one, processor, config):
            inputs = ask().to(where)
            logits = one(**inputs).logits
            kept = one.token_pruner.last[0].indices.tolist()
            answer = one.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
        results.append((logits, kept, answer.tolist()))
    (logits, kept, answer), (theirs, theirs_kept, theirs_answer) = results
    differ = len(set(kept) - set(theirs_kept)) / len(kept)
    found.add(f"fp32, sdpa, {name}: share of kept tokens that differ", differ, 0.05)
    if differ:
        return found.add(f"fp32, sdpa, {name}: logits", None, None, "other tokens, whose scores tie, other logits")
    found.add(f"fp32, sdpa, {name}: logits, deviation", deviation(theirs, logits), EXACT)
    found.add(f"fp32, sdpa, {name}: generated tokens differ", float(answer != theirs_answer), 0.0)


def in_bfloat16(
    attention: str, reference: Any, model: Any, processor: Any, ask: Callable[[], Any], device: str, sizes: Sizes,
    found: Findings,
) -> None:  # fmt: skip
    """The language model on the very tokens that the CPU kept; the stock model's error with all tokens is the scale."""
    name, context = attentions()[attention]
    inputs = ask()
    features = reference.base_model.get_image_features(**pixels(inputs))
    try:
        model.set_attn_implementation(name)
        with context():
            stock = compared(reference, model, inputs, features, device)
    except Exception as error:  # this machine lacks it
        return found.add(f"bf16, {attention}", None, 0.0 if attention == "sdpa" else None, f"not here: {first(error)}")
    found.add(f"bf16, {attention}, all tokens (stock): logits, deviation", stock)
    for case, (method, counted) in CASES.items():
        if counted and attention != "sdpa":
            found.add(f"bf16, {attention}, {case}", None, None, "takes no bias: sizes need sdpa or eager")
            continue
        config = TokenPrunerConfig(method=method, budget=sizes.kept, proportional_attention=counted)
        with token_pruner(reference, processor, config), token_pruner(model, processor, config), context():
            short = ask()
            kept = reference.base_model.get_image_features(**pixels(short))
            error_now = compared(reference, model, short, kept, device)
        found.add(f"bf16, {attention}, {case}: logits, deviation", error_now, WORSE * stock)


def compared(reference: Any, model: Any, inputs: Any, features: Any, device: str) -> float:
    """Deviation of the last logits of a prefill on the device from those of the reference."""
    expected = prefill(reference, inputs, copy.copy(features)).logits
    moved = copy.copy(features)
    moved.pooler_output = [unit.to(device, model.dtype) for unit in features.pooler_output]
    return deviation(prefill(model, inputs.to(device), moved).logits, expected)


def pixels(inputs: Any) -> Settings:
    return {"pixel_values": inputs["pixel_values"], "return_dict": True}


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest of what is expected."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).abs().max() / expected.abs().max())
