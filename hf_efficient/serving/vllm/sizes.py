"""Proportional attention in vLLM: the log of a token's size as further numbers of its key.

Paged attention adds no bias to a key, but

    scale * q k + log n_k  =  scale * [q, 1] [k, log(n_k) / scale],

and a layer may have wider heads than its model. So every layer of the language model gets heads of the next width that
the backend's kernels take: queries end in ones, keys in the log of what their token stands for, values in zeros, which
are cut off again. Keys lie in the cache with their sizes; prefix caching, steps of a prefill and preemption need
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_efficient.compat.vllm import attention_layers, longest_step, wider_layer

from .places import BASE

SIZE_COLUMNS = 2  # of features: a size in two digits
TERMS = 2  # of keys: a bias as the sum of two numbers, so that 16 bits hold it as well as 32
HIDDEN = -100.0  # bias of a token that stands for none
#: backends that take the width of heads from the layer and not from the model's config
BACKENDS = ("CPU_ATTN", "FLASH_ATTN")


class SizedHeads:
    """Before vLLM's `Attention`, whose heads are wider than the model's.

    Attributes:
        own: width of the model's heads.
        log_sizes: (T,) float32, of the tokens of a step.
    """

    own: int
    log_sizes: Tensor
    num_heads: int
    num_kv_heads: int
    head_size: int
    impl: Any

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As vLLM's: rotated queries (T, H·own), keys and values (T, H_kv·own) -> (T, H·own)."""
        rest = self.head_size - self.own
        bias = self.log_sizes[: len(key), None] / self.impl.scale
        first = bias.to(key.dtype)
        terms = torch.cat([first, (bias - first.float()).to(key.dtype)], 1)
        ones, zeros = torch.ones_like(terms), key.new_zeros(len(key), rest)
        stock: Any = super()
        wide: Tensor = stock.forward(
            widened(query, self.own, torch.cat([ones, zeros[:, TERMS:]], 1)),
            widened(key, self.own, torch.cat([terms, zeros[:, TERMS:]], 1)),
            widened(value, self.own, zeros),
        )
        return wide.unflatten(1, (self.num_heads, self.head_size))[..., : self.own].flatten(1)


def widened(x: Tensor, own: int, columns: Tensor) -> Tensor:
    """(T, H·own) with the columns (T, C) behind every head: (T, H·(own + C))."""
    heads = x.unflatten(1, (-1, own))
    return torch.cat([heads, columns.unsqueeze(1).expand(-1, heads.shape[1], -1)], 2).flatten(1)


def width_for(backend: Any, own: int) -> int:
    """The next width of heads that a backend's kernels take and that has place for a bias.

    Raises:
        ValueError: there is none.
    """
    name = backend.get_name()
    wide = next(
        (w for w in range(own // 8 * 8 + 8, 513, 8) if w >= own + TERMS and backend.supports_head_size(w)), None
    )
    if name not in BACKENDS or wide is None:
        why = f"no heads wider than {own}" if name in BACKENDS else "heads of the width that the model's config says"
        raise ValueError(
            f"Sizes of tokens (proportional attention) need wider heads, and {name} of vLLM has {why}. Set "
            f"proportional_attention=False, or choose another of {', '.join(BACKENDS)} by --attention-backend."
        )
    return wide


class TokenSizes:
    """Sizes of the tokens of a step, and the layers that count them.

    Args:
        model: of vLLM, just built; the attention of its language model is exchanged.
        vllm_config: all settings of the engine.

    Raises:
        ValueError: its attention cannot count sizes.
    """

    def __init__(self, model: Any, vllm_config: Any) -> None:
        self.log_sizes = torch.zeros(longest_step(vllm_config), dtype=torch.float32)
        for parent, name, layer in attention_layers(model):
            own = layer.head_size
            wider = wider_layer(layer, width_for(layer.attn_backend, own), SizedHeads, vllm_config)
            wider.own = own
            wider.register_buffer("log_sizes", self.log_sizes, persistent=False)
            setattr(parent, name, wider)

    def take(self, features: Sequence[Tensor], visual: Tensor | None) -> list[Tensor]:
        """Note the sizes of a step's tokens; features (K, D) of pictures without the columns that told them.

        Args:
            features: (K, D + SIZE_COLUMNS) of every picture or video of the step, or of a part of it.
            visual: bool, of all tokens of the step, those that they are for; None where there are none.
        """
        self.log_sizes.zero_()
        if len(features):
            assert visual is not None  # vLLM says which tokens the features are for
            digits = torch.cat([x[:, -SIZE_COLUMNS:] for x in features]).float()
            logs = (digits[:, 0] * BASE + digits[:, 1]).log().clamp(min=HIDDEN)
            places = visual.nonzero().squeeze(1).to(self.log_sizes.device)
            self.log_sizes[places] = logs.to(self.log_sizes.device)
        return [x[:, :-SIZE_COLUMNS] for x in features]


def with_sizes(tokens: list[Tensor], sizes: list[Tensor] | None) -> list[Tensor]:
    """Tokens (K, D) of every picture with their sizes (K,): (K, D + SIZE_COLUMNS); `sizes` None: each is one."""
    made = []
    for i, x in enumerate(tokens):
        whole = (torch.ones(len(x), device=x.device) if sizes is None else sizes[i]).long()
        made.append(torch.cat([x, torch.stack([whole // BASE, whole % BASE], 1).to(x)], 1))
    return made


def refused_with_sizes(vllm_config: Any) -> dict[str, tuple[bool, str]]:
    """Settings of an engine with which keys would not get their sizes -> whether they are on, and why."""
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    why = "sizes of tokens are known in the process and the step that embed them alone"
    instead = "; proportional_attention=False needs none"
    found: dict[str, tuple[bool, str]] = {
        "pipeline_parallel_size": (parallel.pipeline_parallel_size > 1, why),
        "prefill_context_parallel_size": (getattr(parallel, "prefill_context_parallel_size", 1) > 1, why),
        "decode_context_parallel_size": (getattr(parallel, "decode_context_parallel_size", 1) > 1, why),
        "enable_dbo": (bool(parallel.enable_dbo), why),
        "speculative_config": (
            vllm_config.speculative_config is not None, "a drafter does not know the columns with tokens' sizes"),
        "kv_transfer_config": (
            vllm_config.kv_transfer_config is not None, "connectors take the width of heads from the model's config"),
        "cache_dtype": (
            cache.cache_dtype not in ("auto", "float16", "bfloat16"), "eight bits do not hold a token's size"),
    }  # fmt: skip
    return {name: (asked, reason + instead) for name, (asked, reason) in found.items()}
