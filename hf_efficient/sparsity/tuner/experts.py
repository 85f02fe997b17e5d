"""Fused experts: modules that hold the matrices of all experts in one parameter of three dimensions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from .layer import BiDSTLayer, uncovered


class Experts(BiDSTLayer):
    """A module of fused experts with one parameter replaced, (experts, rows, columns); for several, one wraps the next.

    The module itself is called, with another tensor for the parameter, so that every implementation of transformers
    (eager, batched, grouped) works.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = [a for a in self.active_adapters if a in self.bidst_weight]
        if self.disable_adapters or self.merged or not adapters:
            return self.base_layer(x, *args, **kwargs)
        weight, bias = self.effective(adapters)
        tensors = {self.parameter: weight} if bias is None else {self.parameter: weight, self.bias_name: bias}
        path = ""
        layer: Any = self.base_layer
        while hasattr(layer, "base_layer"):
            path, layer = f"{path}base_layer.", layer.base_layer
        with uncovered(layer, tensors):
            return functional_call(self.base_layer, {path + name: t for name, t in tensors.items()}, (x, *args), kwargs)

    def __getattr__(self, name: str) -> Any:
        """Other attributes are those of the module: its parent may read the number of experts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The module itself, for PEFT's `merge_and_unload` and `unload`."""
        layer: nn.Module = self
        while merge and isinstance(layer, BiDSTLayer):
            layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            layer = layer.base_layer
        return self.get_base_layer()
