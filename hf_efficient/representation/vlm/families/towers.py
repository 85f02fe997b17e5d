"""Importance from vision encoders: the attention of one layer, rebuilt from its queries and keys.

Forward hooks read queries and keys where the encoder makes them, so the encoder keeps its fused attention, which
returns no map, and nothing is computed twice but the scores of one layer. Threads that run one encoder at once see
each its own.
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from hf_efficient.representation.maths.importance import cls_attention, received_attention


class AttentionWatch(Protocol):
    """While entered, learns the attention of what runs; afterwards `result()` tells it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def result(self) -> Tensor:
        """(images, tokens) float32, or (tokens,) for encoders that run all images as one sequence."""
        ...


_WATCH: ContextVar[Watch | None] = ContextVar("attention_watch", default=None)
_LOCK = threading.Lock()
_HOOKS: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()


class Watch:
    """While entered, is shown what some modules take and give in this thread.

    The hooks on a module are the same for all threads that watch it, and go with the last of them; whom they show it to
    is a context variable, of which every thread has its own.
    """

    def __init__(self, outputs: dict[str, nn.Module], caller: nn.Module) -> None:
        """`outputs`: name -> module whose output is wanted; `caller`: the module whose arguments are."""
        self.outputs = {module: name for name, module in outputs.items()}
        self.caller = caller
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> Self:
        with _LOCK:
            for module in (*self.outputs, self.caller):
                count, handles = _HOOKS.get(module, (0, []))
                if not count and module is self.caller:
                    handles = [module.register_forward_pre_hook(_show_call, with_kwargs=True)]
                elif not count:
                    handles = [module.register_forward_hook(_show_output)]
                _HOOKS[module] = count + 1, handles
        self.token = _WATCH.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _WATCH.reset(self.token)
        with _LOCK:
            for module in (*self.outputs, self.caller):
                count, handles = _HOOKS.pop(module)
                if count > 1:
                    _HOOKS[module] = count - 1, handles
                else:
                    for handle in handles:
                        handle.remove()

    def called(self, kwargs: dict[str, Any]) -> None:
        """Take what is wanted of the named arguments of `caller`."""


def _show_output(module: nn.Module, inputs: Any, output: Any) -> None:
    watch = _WATCH.get()
    if watch is not None and module in watch.outputs:
        watch.seen[watch.outputs[module]] = output.detach()


def _show_call(module: nn.Module, inputs: Any, kwargs: dict[str, Any] | None = None) -> None:
    # without arguments where another thread takes the hook off just now, whose call this is not
    watch = _WATCH.get()
    if watch is not None and kwargs is not None and module is watch.caller:
        watch.called(kwargs)


class VitWatch(Watch):
    """Attention of one layer of an encoder with `q_proj` and `k_proj`: CLIP, SigLIP, DINOv2, InternViT, Idefics3."""

    def __init__(self, tower: nn.Module, layer: int | list[int], source: str) -> None:
        """`layer` indexes the encoder's hidden states, of several the last counts; `source`: "cls" or "received"."""
        self.module = attention_at(tower, layer if isinstance(layer, int) else layer[-1])
        # where queries and keys are normed, the norm's output is what attention sees
        parts = {n: getattr(self.module, f"{n}_norm", None) or getattr(self.module, f"{n}_proj") for n in ("q", "k")}
        super().__init__(parts, self.module)
        self.source = source

    def called(self, kwargs: dict[str, Any]) -> None:
        self.seen["mask"] = kwargs.get("attention_mask")

    @torch.no_grad()
    def result(self) -> Tensor:
        """(images, tokens) float32; tokens that the encoder masks get 0."""
        q, k = (split_heads(self.seen[name], self.module) for name in "qk")
        scale = attribute(self.module, "scale", "scaling")
        if self.source == "cls":
            return cls_attention(q[:, :, 0], k, scale)
        seen = visible_keys(self.seen["mask"], k.shape[2])
        if seen is None:
            return received_attention(q, k, scale)
        result = k.new_zeros(k.shape[0], k.shape[2], dtype=torch.float32)
        for i, real in enumerate(seen):
            result[i, real] = received_attention(q[i : i + 1, :, real], k[i : i + 1, :, real], scale)[0]
        return result


def attribute(thing: Any, *names: str) -> Any:
    """The first of several attributes that there is: the same part goes by different names in different encoders."""
    return next((found for name in names if (found := getattr(thing, name, None)) is not None), None)


def split_heads(x: Tensor, module: Any) -> Tensor:
    """(B, N, H·d) or (B, N, H, d) -> (B, H, N, d)."""
    return x.reshape(*x.shape[:2], -1, module.head_dim).transpose(1, 2)


def visible_keys(mask: Any, n: int) -> Tensor | None:
    """(B, n) bool: keys that queries may see, from the mask (B, 1, n, n) given to a layer; None if all of them."""
    if not isinstance(mask, Tensor):
        return None
    seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).reshape(mask.shape[0], -1, n)
    seen = seen.any(1)
    return None if bool(seen.all()) else seen


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of an encoder, first to last; empty where none is of a known make."""
    inner = getattr(tower, "vision_model", tower)
    inner = getattr(inner, "encoder", inner)
    layers: Any = attribute(inner, "layers", "layer") or ()
    modules = []
    for layer in layers:
        module = attribute(layer, "self_attn", "attention")
        if not hasattr(module, "q_proj"):
            return []
        modules.append(module)
    return modules


def attention_at(tower: nn.Module, hidden_state: int) -> nn.Module:
    """Attention of the layer that makes `hidden_states[hidden_state]`; state 0 counts as state 1."""
    modules = attention_layers(tower)
    return modules[hidden_state if hidden_state < 0 else max(0, hidden_state - 1)]


def prefix_tokens(tower: nn.Module) -> int:
    """Tokens an encoder puts before those of the patches: [CLS] and registers."""
    embeddings = getattr(getattr(tower, "vision_model", tower), "embeddings", None)
    has_cls = any(hasattr(embeddings, name) for name in ("class_embedding", "cls_token"))
    registers = getattr(embeddings, "register_tokens", None)
    return int(has_cls) + (0 if registers is None else registers.shape[1])


def offers(tower: nn.Module) -> tuple[str, ...]:
    """Sources of importance an encoder has, the best first."""
    if not attention_layers(tower):
        return ()
    return ("cls", "received") if prefix_tokens(tower) else ("received",)


def choose_source(wanted: str, offered: tuple[str, ...], encoder: str) -> str | None:
    """Where importance comes from: one of `offered`, or None where features must tell.

    Raises:
        ValueError: `wanted`, a `TokenPrunerConfig.importance`, cannot be had from this encoder.
    """
    if wanted == "auto":
        return offered[0] if offered else None
    if wanted in ("cls", "received") and wanted not in offered:
        raise ValueError(
            f"importance={wanted!r} cannot be had from {encoder}; it offers: "
            f"{', '.join([*offered, 'distinct', 'norm'])}. importance='auto' takes the first."
        )
    return wanted if wanted in offered else None
