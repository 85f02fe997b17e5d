"""Sparse deltas on quantized linear layers: y = W_q x + D x, without the numbers that W_q's codes stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base_weight import is_quantized
from .layer import BiDSTLayer


class QuantizedLinear(BiDSTLayer):
    """A quantized linear layer with sparse deltas. It is called as it is, and each delta's product is added.

    What a step keeps for backward are the inputs alone; a delta is a whole matrix only while its product is computed.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out), in the dtype of the base layer's result.

        Raises:
            ValueError: in training, if the base layer lets no gradient through to an input that has one; in evaluation,
                where outputs may be all that is wanted, backward raises it.
        """
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        if x.requires_grad and torch.is_grad_enabled() and not result.requires_grad:
            if self.training:  # at once: where other layers cut the graph as well, backward would not come by
                _refuse_without_backward(self.get_base_layer())
            x = _NoWayBack.apply(x, x, self.get_base_layer())  # type: ignore[no-untyped-call]
        for adapter in self.active_adapters:
            if adapter not in self.bidst_weight:
                continue
            weight, path = self.sparse_weight(adapter), self.backend[adapter]
            if self.training and path.suits(weight, x):
                delta = path(weight, x)
            else:
                delta = _DeltaProduct.apply(weight.values, x, weight.indices, weight)  # type: ignore[no-untyped-call]
            result = result + delta.to(result.dtype)
        return result

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The delta, (out, in), in the dtype of its values."""
        return self.sparse_weight(adapter).dense().detach()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: codes are too coarse for it.

        Raises:
            ValueError: always.
        """
        refuse_merging(self.get_base_layer())


def refuse_merging(base: Any) -> None:
    """Refuse to merge a delta into codes.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"A sparse delta cannot be merged into a {type(base).__name__}: its codes would round most of the delta away. "
        "Load the base model without quantization, PeftModel.from_pretrained(model, folder_of_the_adapter), and merge "
        "there; or keep adapter and model apart, which costs little."
    )


def without_deltas(model: nn.Module) -> list[nn.Module]:
    """The quantized layers of a model that have no delta."""
    adapted = {id(module.get_base_layer()) for module in model.modules() if isinstance(module, BiDSTLayer)}
    return [module for module in model.modules() if id(module) not in adapted and is_quantized(module)]


@contextmanager
def gaps_named(layers: Iterable[nn.Module]) -> Iterator[None]:
    """In a training forward: layers that let no gradient through to what learns below them are named.

    Torch would say that a loss has no graph or, where layers above are adapted, nothing at all, and those below would
    not learn. It is an error where backward asks for the gradient, so that all that needs none goes on: outputs, and
    layers below all that learns.

    Args:
        layers: quantized ones without deltas.
    """
    hooks = [layer.register_forward_hook(_name_gap) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _name_gap(base: nn.Module, inputs: tuple[Any, ...], result: Any) -> Tensor | None:
    if torch.compiler.is_compiling() or not base.training or not torch.is_grad_enabled():
        return None
    if not isinstance(result, Tensor) or result.requires_grad:
        return None
    for x in inputs:
        if isinstance(x, Tensor) and _learns(x):
            # checkpointing calls the layer again when backward comes by, and expects the graph that was there before
            gap: Tensor = _NoWayBack.apply(x, result, base, _Hook(base))  # type: ignore[no-untyped-call]
            return gap
    return None


def _learns(x: Tensor) -> bool:
    """Whether x depends on parameters that want gradients; for checkpointing embeddings are made to, which learn not.

    It follows the graph, and is asked only of inputs of layers that have none.
    """
    nodes, seen = [x.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


class _Hook:
    """Names a layer's gap in every forward, for as long as a graph keeps it."""

    def __init__(self, layer: nn.Module) -> None:
        self.handle = layer.register_forward_hook(_name_gap)

    def __del__(self) -> None:
        self.handle.remove()


class _NoWayBack(torch.autograd.Function):
    """A result of x that lacks a gradient to x: said where it is wanted, since outputs alone are right without it.

    What is `kept` lives as long as the graph does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor, base: Any, kept: object = None) -> Tensor:
        ctx.base, ctx.kept = base, kept
        return result.detach()  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        _refuse_without_backward(ctx.base)


def _refuse_without_backward(base: Any) -> None:
    weight = getattr(base, "weight", None)  # layers of AWQ and HQQ have none
    codes = "" if weight is None else f" with a {type(weight).__name__}"
    raise ValueError(
        f"A {type(base).__name__}{codes} lets no gradient through to its input: layers below would not learn "
        "what it makes of theirs. Quantize weights alone, not activations."
    )


class _DeltaProduct(torch.autograd.Function):
    """y = x @ D.T for the sparse delta D; forward and backward make D anew instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, indices: Tensor, weight: SparseWeight) -> Tensor:
        ctx.weight, ctx.probing = weight, weight.probing
        ctx.save_for_backward(values, x, indices)
        if weight.collecting:
            weight.start_collecting()
        if weight.probing:
            return x.new_zeros(*x.shape[:-1], weight.shape[0])
        tokens, k, columns = x[..., 0].numel(), len(indices), weight.shape[1]
        if tokens * k > weight.numel:
            return F.linear(x, weight.dense().to(x.dtype))
        flat = indices.long()  # few tokens, as when a text is generated: entry by entry
        terms = x.reshape(-1, columns)[:, flat % columns].float() * values.float()
        y = terms.new_zeros(tokens, weight.shape[0]).index_add_(1, flat // columns, terms)
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, x, indices = ctx.saved_tensors
        weight: SparseWeight = ctx.weight
        gradient = gradient.to(x.dtype)
        to_x = to_values = None
        if ctx.needs_input_grad[1]:
            to_x = torch.zeros_like(x)
            if not ctx.probing:
                whole = values.new_zeros(weight.numel).index_add_(0, indices, values)
                to_x = gradient @ whole.view(weight.shape).to(x.dtype)
        if ctx.needs_input_grad[0] or weight.collecting:
            to_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2)
            if weight.collecting:
                weight.collect(to_weight)
        if ctx.needs_input_grad[0]:
            weight.on_backward()
            to_values = to_weight.flatten().index_select(0, indices).to(values.dtype)
            if ctx.probing:
                to_values = torch.zeros_like(to_values)
        return to_values, to_x, None, None
