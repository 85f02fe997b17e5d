"""A layer with a sparse weight, or with a sparse delta on its weight: PEFT's tuner layer."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hf_efficient.compat.peft import check_adapters_to_merge
from hf_efficient.compat.torch import AnyConv
from hf_efficient.extras import extra
from hf_efficient.sparsity.csr.product import CSRPath
from hf_efficient.sparsity.pattern import Groups, NMPattern
from hf_efficient.sparsity.sparse_weight import SparseWeight

from .base_weight import BaseWeight, has_own_forward, is_quantized
from .config import BiDSTConfig

with extra("sparsity"):
    from peft.tuners.tuners_utils import BaseTunerLayer


class BiDSTLayer(nn.Module, BaseTunerLayer):
    """Computes its base layer with another weight: sparse ("weight"), or the base weight plus a sparse delta ("delta").

    For every layer whose forward reads one `weight`: Linear, convolutions, Embedding, Conv1D. Only merging changes the
    base layer.

    Args:
        base_layer: the layer, possibly wrapped by other adapters.
        parameter: name of the base layer's parameter that is replaced.

    Attributes:
        bidst_weight: adapter -> SparseWeight.
        bidst_bias: adapter -> bias of the layer, where target is "weight" and the layer has one.
    """

    adapter_layer_names = ("bidst_weight", "bidst_bias")
    other_param_names = ("target", "backend")

    def __init__(self, base_layer: nn.Module, parameter: str = "weight") -> None:
        super().__init__()
        self.base_layer = base_layer
        self.parameter, self.bias_name = parameter, "bias" if parameter == "weight" else f"{parameter}_bias"
        self.bidst_weight = nn.ModuleDict()
        self.bidst_bias = nn.ParameterDict()
        self.target: dict[str, str] = {}
        self.backend: dict[str, CSRPath] = {}
        self.in_features, self.out_features = _features(self.get_base_layer(), parameter)
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self._before_merge: list[tuple[Tensor, Tensor | None]] = []

    def update_layer(self, adapter_name: str, key: str, k: int, config: BiDSTConfig) -> None:
        """Add an adapter of k active weights.

        Args:
            adapter_name: new.
            key: name of the layer in its model; its random numbers depend on it.
            k: 1 <= k <= n.
            config: target and initial mask.
        """
        base = BaseWeight(self.get_base_layer(), self.parameter)
        weight, bias = base.tensor, getattr(base.module, self.bias_name, None)
        sparse = SparseWeight(base.shape, k, dtype=weight.dtype if weight.is_floating_point() else torch.float32)
        sparse.input_dim = 0 if base.inputs_first else 1
        if base.stacked:
            sparse.set_expert_layout(base.inputs_first)
        if config.pattern is not None:
            sparse.groups = Groups.along(NMPattern.parse(config.pattern), base.shape, base.input_axis)
        if not sparse.values.is_meta and not weight.is_meta:
            indices = initial_indices(base, k, config, sparse.groups, zlib.crc32(key.encode()))
            sparse.select(indices, weight.detach().flatten()[indices] if config.target == "weight" else None)
        self.bidst_weight[adapter_name] = sparse
        if config.target == "weight" and bias is not None:
            self.bidst_bias[adapter_name] = nn.Parameter(torch.empty_like(bias).copy_(bias.detach()))
        self.target[adapter_name] = config.target
        self.backend[adapter_name] = CSRPath(config.backend)
        self._move_adapter_to_device_of_base_layer(adapter_name, weight.device)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def base_tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the base layer."""
        base = self.get_base_layer()
        return getattr(base, self.parameter), getattr(base, self.bias_name, None)

    def get_base_weight(self) -> Tensor:
        """Weight of the base layer."""
        return self.base_tensors()[0]

    def sparse_weight(self, adapter: str) -> SparseWeight:
        """The adapter's weight or delta."""
        weight: SparseWeight = self.bidst_weight[adapter]  # type: ignore[assignment]
        return weight

    def effective(self, adapters: list[str]) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that the base layer is computed with, in its dtype.

        Raises:
            ValueError: more than one adapter replaces the weight.
        """
        base, bias = self.base_tensors()
        weight = base
        here = [a for a in adapters if a in self.bidst_weight]
        replacing = self._one_replacing(here)
        for adapter in replacing:
            sparse = self.sparse_weight(adapter)
            weight = sparse.dense(base if sparse.probing else None)
            bias = self.bidst_bias.get(adapter, bias)
        for adapter in here:
            if adapter not in replacing:
                weight = self.sparse_weight(adapter).dense(weight)
        return weight.to(base.dtype), bias if bias is None else bias.to(base.dtype)

    def _one_replacing(self, adapters: list[str]) -> list[str]:
        """Those of the adapters that replace the whole weight: none or one."""
        replacing = [a for a in adapters if self.target.get(a) == "weight"]
        if len(replacing) > 1:
            raise ValueError(
                f"Adapters {replacing} each replace the whole weight (target='weight'), so only one of them can be "
                "active or merged. Choose one with set_adapter, or train the others with target='delta'."
            )
        return replacing

    def get_delta_weight(self, adapter: str) -> Tensor:
        """What the adapter adds to the base weight, of the weight's shape and dtype."""
        base = self.get_base_weight()
        if self.target[adapter] == "delta":
            return self.sparse_weight(adapter).dense().detach().to(base.dtype)
        return self.effective([adapter])[0].detach() - base

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's `convert_to_lora` can take the adapter: a delta on a linear layer."""
        base = self.get_base_layer()
        return not has_own_forward(base) and self.target.get(adapter_name) == "delta"

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the effective weight into the base layer.

        Raises:
            ValueError: the result is not finite with `safe_merge`, or two adapters replace the weight.
        """
        adapters = [a for a in check_adapters_to_merge(self, adapter_names) if a in self.bidst_weight]
        self._one_replacing([*self.merged_adapters, *adapters])
        for adapter in sorted(adapters, key=lambda a: self.target[a] != "weight"):  # deltas add to what replaces
            base_weight, base_bias = self.base_tensors()
            sparse = self.sparse_weight(adapter)
            sparse.check(sparse.indices, f"adapter {adapter!r}")
            weight, bias = self.effective([adapter])
            weight = weight.detach()
            if safe_merge and not bool(weight.isfinite().all()):
                raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken")
            # the old weight is kept, not recomputed: w + d - d is not w in floating point
            self._before_merge.append((base_weight.data, None if base_bias is None else base_bias.data))
            base_weight.data = weight.clone() if weight is base_weight else weight
            if bias is not None and base_bias is not None:
                base_bias.data = bias.detach().clone()
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Restore the base layer, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base_weight, base_bias = self.base_tensors()
        while self.merged_adapters:
            self.merged_adapters.pop()
            base_weight.data, bias = self._before_merge.pop()
            if bias is not None and base_bias is not None:
                base_bias.data = bias

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's result with the effective weight: same shapes and dtype."""
        base: Any = self.get_base_layer()
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = [a for a in self.active_adapters if a in self.bidst_weight]
        if self.disable_adapters or self.merged or not adapters:
            result: Tensor = self.base_layer(x, *args, **kwargs)
            return result
        linear = isinstance(base, nn.Linear) and not has_own_forward(base)
        if self.training and len(adapters) == 1 and linear:
            adapter, path, sparse = adapters[0], self.backend[adapters[0]], self.sparse_weight(adapters[0])
            if path.suits(sparse, x):
                rest = F.linear(x, base.weight, base.bias) if self.target[adapter] == "delta" else base.bias
                rest = self.bidst_bias.get(adapter, rest)
                return path(sparse, x) if rest is None else path(sparse, x) + rest
        weight, bias = self.effective(adapters)
        if linear:
            return F.linear(self._cast_input_dtype(x, weight.dtype), weight, bias)
        tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        with uncovered(base, tensors):
            result = functional_call(base, tensors, (x, *args), kwargs)
        return result

    def __getattr__(self, name: str) -> Any:
        """Strides and sizes are those of the layer: its parent may compute lengths with them, as Whisper's does."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base_layer", "_modules") or name not in getattr(self.get_base_layer(), "__constants__", ()):
                raise
            return getattr(self.get_base_layer(), name)

    def __repr__(self) -> str:
        return "bidst." + super().__repr__()


class Linear(BiDSTLayer):
    """A `BiDSTLayer` of a linear layer; PEFT finds the linear layers of an adapted model by this name."""


@contextmanager
def uncovered(layer: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Remove plain attributes that hide these parameters; FSDP sets such attributes during a forward."""
    hidden = {name: vars(layer).pop(name) for name in names if name in vars(layer)}
    try:
        yield
    finally:
        vars(layer).update(hidden)


def _features(layer: Any, parameter: str) -> tuple[int, int]:
    """Number of input and output features, as PEFT's layers expose them."""
    if isinstance(layer, nn.Linear) or is_quantized(layer):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, AnyConv):
        return layer.in_channels, layer.out_channels
    rows, columns = getattr(layer, parameter).shape[-2:]  # Conv1D of GPT-2 keeps (in, out)
    return rows, columns


def initial_indices(weight: BaseWeight, k: int, config: BiDSTConfig, groups: Groups | None, salt: int) -> Tensor:
    """(k,) int64: the indices of the initially active weights, rising.

    "gradient" and "snip" start at random too; the engine replaces them at the first steps, when there are gradients.
    """
    generator = torch.Generator().manual_seed(config.seed * 2**32 + salt)
    if groups is not None and k < weight.numel:
        if config.resolved_init == "magnitude" or config.distribution == "as_pruned":
            return groups.best(weight.numbers().flatten().float().abs())
        return groups.best(torch.rand(weight.numel, generator=generator)).to(weight.tensor.device)
    if config.distribution == "as_pruned":
        return weight.numbers().flatten().nonzero().flatten()
    if config.resolved_init == "magnitude":
        return weight.numbers().flatten().float().abs().topk(k).indices.sort().values
    return torch.randperm(weight.numel, generator=generator)[:k].sort().values.to(weight.tensor.device)
