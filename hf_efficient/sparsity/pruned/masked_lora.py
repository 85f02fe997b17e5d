"""LoRA on a pruned layer: the delta is masked by the layer's zeros, in the forward as in the merge.

W' = W + M * (s B A), M = 1 where W is not zero (SQFT, Munoz et al., EMNLP Findings 2024, arXiv 2410.03750).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hf_efficient.compat.peft import dequantized_weight, maskable_lora_layers
from hf_efficient.compat.torch import AnyConv, convolve
from hf_efficient.extras import extra
from hf_efficient.sparsity.storage import mask_encoding

from .weights import PrunedWeight

with extra("sparsity"):
    from peft import LoraConfig
    from peft.tuners.lora.layer import LoraVariant
    from peft.tuners.tuners_utils import BaseTunerLayer

#: Values of init_lora_weights that leave the base weight as it is.
KEEPING_INITS = (True, False, "gaussian", "orthogonal", "eva")
KEEPING_TUNERS = ("ia3",)  # it multiplies rows or columns of a weight


@dataclass
class MaskedLoraConfig(LoraConfig):
    """`LoraConfig` of an adapter whose deltas are masked; its file says so, and PEFT warns where it is loaded."""

    keeps_zeros: bool = field(default=True, metadata={"help": "Made with hf_efficient.keep_sparsity: call it again."})


class MaskedLora(LoraVariant):  # type: ignore[misc]  # PEFT's class is untyped
    """The variant of LoRA that PEFT calls in a masked layer."""

    def supports_lora_conversion(self) -> bool:
        """No: a masked delta is not of low rank."""
        return False

    @staticmethod
    def init(module: Any, adapter_name: str, config: Any = None, **_: Any) -> None:
        """Called by PEFT for an adapter that is added later."""
        check_config(config, adapter_name)
        mark(config)

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """The layer's result plus that of the masked delta."""
        x = module.lora_dropout[active_adapter](x)
        base = module.get_base_layer()
        if isinstance(base, AnyConv):
            delta = module.get_delta_weight(active_adapter).masked_fill(inactive(module), 0)
            added = convolve(base, x.to(delta.dtype), delta)
        else:
            a, b = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
            added = _MaskedDelta.apply(x, a, b, module, module.scaling[active_adapter])  # type: ignore[no-untyped-call]
        bias = module.lora_B[active_adapter].bias
        if bias is not None:
            shape = (-1, *[1] * (added.dim() - 2)) if isinstance(base, AnyConv) else (-1,)
            added = added + (bias * module.scaling[active_adapter]).view(shape)
        return result + added

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The merged weight, a new tensor."""
        orig_weight = _readable(module, orig_weight)
        module.lora_variant.remember(module, orig_weight)
        return orig_weight + masked_delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Merge in place."""
        module.lora_variant.remember(module, orig_weight)
        orig_weight.data += masked_delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without the delta, as after PEFT's own unmerge: to rounding."""
        orig_weight = _readable(module, orig_weight)
        return orig_weight - masked_delta(module, active_adapter).to(orig_weight.dtype)


class MaskedVariants(dict[str, LoraVariant]):
    """`lora_variant` of a layer whose zeros are kept: every adapter of it is masked, later ones too.

    Attributes:
        bits: while adapters are merged, which entries were active before: (ceil(n / 8),) uint8. A merged entry may be
            exactly zero by chance, and must come back.
    """

    bits: Tensor | None = None

    def __contains__(self, adapter: object) -> bool:
        return True

    def __missing__(self, adapter: str) -> MaskedLora:
        return MaskedLora()

    def get(self, adapter: str, default: Any = None) -> Any:
        """The variant of any adapter."""
        return self[adapter]

    def __setitem__(self, adapter: str, variant: Any) -> None:
        kind = type(variant).__name__.removesuffix("Variant")
        raise ValueError(
            f"Adapter {adapter!r} is {kind}, a variant of LoRA that cannot be masked, and keep_sparsity keeps the "
            "zeros of this model. Use plain LoRA, or undo it first: keep_sparsity(model).remove()."
        )

    def remember(self, layer: Any, weight: Tensor) -> None:
        """Note which entries are active, before the first adapter is merged."""
        if not layer.merged_adapters:
            self.bits = mask_encoding.pack(weight.detach().flatten() != 0)


class _MaskedDelta(torch.autograd.Function):
    """y = x (M * s B A)^T. Keeps x, A and B for backward, not the matrix, which has as many entries as the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: Any, scaling: float) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.layer, ctx.scaling = layer, scaling
        delta = (b @ a * scaling).masked_fill_(_outputs_first(layer), 0)
        return F.linear(x, delta.to(x.dtype))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, a, b = ctx.saved_tensors
        layer, scaling = ctx.layer, ctx.scaling
        inactive_entries = _outputs_first(layer)
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            delta = (b @ a * scaling).masked_fill_(inactive_entries, 0)
            of_x = (gradient @ delta.to(gradient.dtype)).to(x.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            rows = gradient.flatten(0, -2)
            of_delta = (rows.T @ x.flatten(0, -2).to(rows.dtype)).to(a.dtype)
            of_delta = of_delta.masked_fill_(inactive_entries, 0) * scaling
            of_a, of_b = b.T @ of_delta, of_delta @ a.T
        return of_x, of_a, of_b, None, None


@torch.no_grad()
def inactive(layer: Any) -> Tensor:
    """Bool, of the base weight's shape: where it is zero."""
    return dequantized_weight(layer.get_base_layer()) == 0


def _outputs_first(layer: Any) -> Tensor:
    """The same as (outputs, inputs)."""
    zeros = inactive(layer)
    return zeros.T if layer.fan_in_fan_out else zeros


def _readable(layer: Any, weight: Tensor) -> Tensor:
    """The weight itself, or a quantized one's numbers, which PEFT reads wrongly where bitsandbytes has packed it."""
    base = layer.get_base_layer()
    return weight if base.weight.is_floating_point() else dequantized_weight(base)


def masked_delta(layer: Any, adapter: str) -> Tensor:
    """M * (s B A) in the layout of the base weight, for merging."""
    delta: Tensor = layer.get_delta_weight(adapter)
    bits = layer.lora_variant.bits
    if bits is None:
        raise ValueError(
            f"Adapter {adapter!r} was merged before its layer was masked. Load the model and the adapter again, and "
            "call keep_sparsity before merging."
        )
    active = mask_encoding.unpack(bits.to(delta.device), delta.numel()).view(delta.shape)
    return delta.masked_fill(~active, 0)


def mask_of(module: Any) -> str | None:
    """Why merging keeps the zeros of a tuner's layer: it is masked, or its tuner keeps them; None if it does not."""
    if isinstance(getattr(module, "lora_variant", None), MaskedVariants):
        return "masked"
    tuner = type(module).__module__.split("tuners.")[-1].split(".")[0] if "peft." in type(module).__module__ else ""
    return tuner if tuner in KEEPING_TUNERS else None


def mask_lora(model: nn.Module, weights: Mapping[str, PrunedWeight]) -> dict[str, Any]:
    """Mask the LoRA layers above these weights: name -> layer.

    Raises:
        ValueError: an adapter cannot be masked.
    """
    owners = {id(weight.module): weight for weight in weights.values()}
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if module.merged:
            raise ValueError(f"The adapter of {name!r} is merged. Call unmerge_adapter() before keep_sparsity.")
        if mask_of(module) is None and id(module.get_base_layer()) in owners:
            check_layer(name, module)
            layers[name] = module
    configs = check_configs(model)
    for layer in layers.values():
        layer.lora_variant = MaskedVariants()
        for adapter, config in configs:
            if adapter in layer.lora_A:
                mark(config)
    return layers


def check_configs(model: nn.Module) -> list[tuple[str, Any]]:
    """Name and config of all adapters; a layer whose weight an adapter's start has changed has no zeros to be known by.

    Raises:
        ValueError: an adapter's start has changed weights.
    """
    configs = {id(c): (adapter, c) for m in model.modules() for adapter, c in _configs(m).items()}
    for adapter, config in configs.values():
        check_config(config, adapter)
    return list(configs.values())


def _configs(module: nn.Module) -> Mapping[str, Any]:
    configs = getattr(module, "peft_config", None)
    return configs if isinstance(configs, Mapping) else {}


def check_layer(name: str, layer: Any) -> None:
    """Refuse a tuner's layer that cannot be masked.

    Raises:
        ValueError: it is of another tuner or quantization, has a variant, or groups.
    """
    fix = "Use plain LoRA, or leave the layer out of the adapter's target_modules."
    kind = f"{type(layer).__module__.rpartition('peft.')[2]}.{type(layer).__name__}"
    if hasattr(layer, "bidst_weight"):
        raise ValueError(
            f"{name!r} has a BiDST adapter, which decides itself which weights are active: "
            "BiDSTConfig(distribution='as_pruned') keeps the zeros of a model, and keep_sparsity is not needed."
        )
    if type(layer) not in maskable_lora_layers():
        raise ValueError(
            f"The adapter of {name!r} is a {kind}, which keep_sparsity cannot mask: merging it would fill the zeros. "
            f"Expected LoRA on linear or convolutional layers, plain or in 4 or 8 bits of bitsandbytes. {fix}"
        )
    for adapter, variant in layer.lora_variant.items():
        method = type(variant).__name__.removesuffix("Variant")
        raise ValueError(f"Adapter {adapter!r} of {name!r} is {method}, which keep_sparsity cannot mask. {fix}")
    if getattr(layer.get_base_layer(), "groups", 1) > 1:
        raise ValueError(f"{name!r} is a convolution in groups, whose LoRA PEFT cannot merge. {fix}")


def check_config(config: Any, adapter: str) -> None:
    """Refuse an adapter whose start has changed the weights.

    Raises:
        ValueError: it has.
    """
    init = getattr(config, "init_lora_weights", True)
    if init not in KEEPING_INITS:
        raise ValueError(
            f"Adapter {adapter!r} has init_lora_weights={init!r}, which changes the pruned weights themselves. Load "
            "the model again, and use True, 'gaussian', 'orthogonal' or 'eva'."
        )


def mark(config: Any) -> None:
    """Let the adapter's file say that its deltas are masked."""
    if type(config) is LoraConfig:
        config.__class__ = MaskedLoraConfig
        config.keeps_zeros = True
