"""Attention of one layer of a vision encoder of vLLM, from the queries and keys that its attention is given.

vLLM computes queries, keys and values in one product and runs its own kernels, which return no map. Every encoder gives
them, split into heads and rotated, to a module of one kind; a hook before it notes them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from hf_efficient.compat.vllm import encoder_attention, mean_over_ranks
from hf_efficient.representation.maths.importance import cls_attention, received_attention


def attention_modules(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of an encoder's layers, first to last; those that vLLM has built."""
    return [module for module in tower.modules() if isinstance(module, encoder_attention())]


class AttentionInputs:
    """While entered, notes what the attention module of one layer is given.

    Args:
        module: vLLM's attention of an encoder (`MMEncoderAttention`).
        source: "cls" or "received", what `importance` tells.
    """

    def __init__(self, module: nn.Module, source: str) -> None:
        self.module, self.source = module, source
        self.given: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Self:
        self.handle = self.module.register_forward_pre_hook(self.note, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.handle.remove()

    def note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook: queries and keys (B, N, H·d) or (B, N, H, d), by place or by name."""
        query = kwargs["query"] if "query" in kwargs else args[0]
        key = kwargs["key"] if "key" in kwargs else args[1]
        self.given.append(tuple(self.heads(x.detach()) for x in (query, key)))  # type: ignore[arg-type]

    def heads(self, x: Tensor) -> Tensor:
        """(B, H, N, d)."""
        width: int = self.module.head_size  # type: ignore[assignment]
        x = x.unflatten(-1, (-1, width)) if x.dim() == 3 else x
        return x.transpose(1, 2)

    @torch.no_grad()
    def importance(self, lengths: list[int] | None = None) -> Tensor:
        """Importance of the encoder's tokens in float32, over the heads of all ranks.

        Args:
            lengths: of images that stand one after the other in one row and see themselves alone; None where every row
                is an image.

        Returns:
            (B, N); with `lengths` (tokens of all images,). Sums to 1 over every image.

        Raises:
            RuntimeError: the layer was not called.
        """
        if not self.given:
            raise RuntimeError(
                "The vision encoder ran without its attention module being called (as in encoder CUDA graphs), so "
                "importance cannot be read. Switch these off, or set importance='distinct'."
            )
        parts = []
        for query, key in self.given:
            if lengths is None:
                parts.append(self.of(query, key))
            else:
                rows = zip(query.split(lengths, 2), key.split(lengths, 2), strict=True)
                parts += [self.of(q, k)[0] for q, k in rows]
        return mean_over_ranks(torch.cat(parts))

    def of(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, N) of queries and keys (B, H, N, d)."""
        scale: float = self.module.scale  # type: ignore[assignment]
        if self.source == "cls":
            return cls_attention(query[:, :, 0], key, scale)
        return received_attention(query, key, scale)
