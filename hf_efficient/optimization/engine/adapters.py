"""Which layers of a PEFT model have a low-rank term, and which adapters have no merged weight that can be moved."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_efficient.checks import check_model

#: Tuner layers whose trainable values are entries of the merged weight: they move there as any other weight does.
ENTRIES = ("BiDSTLayer", "TrainableTokensLayer")
FIX = "Leave perturb at 'weights', or use plain LoRA, SHiRA or a BiDST delta."


class LowRankTerm(NamedTuple):
    """The term s B A that a trainable LoRA adapter adds to a weight.

    Args:
        layer: PEFT's layer.
        adapter: its name there.
    """

    layer: Any
    adapter: str

    @property
    def down(self) -> nn.Module:
        """The module of A, (r, in) or (r, in, *kernel)."""
        module: nn.Module = self.layer.lora_A[self.adapter]
        return module

    @property
    def up(self) -> nn.Module:
        """The module of B, (out, r) or (out, r, 1, ...)."""
        module: nn.Module = self.layer.lora_B[self.adapter]
        return module

    @property
    def a(self) -> Tensor:
        """A."""
        weight: Tensor = self.down.weight  # type: ignore[assignment]
        return weight

    @property
    def b(self) -> Tensor:
        """B."""
        weight: Tensor = self.up.weight  # type: ignore[assignment]
        return weight

    @property
    def scale(self) -> float:
        """s."""
        return float(self.layer.scaling[self.adapter])


def low_rank_terms(model: nn.Module) -> list[LowRankTerm]:
    """The trainable low-rank terms of a model, after a check that all its trainable adapters have a merged weight.

    Raises:
        TypeError: it is no model.
        ValueError: there is no adapter; or one whose merged weight is not the base weight plus s B A, nor has the
            adapter's values as entries; or factors are sharded.
    """
    from peft.tuners.lora.layer import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    check_model(model, "what get_peft_model returned", "merged")
    terms, adapters = [], 0
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or not _trainable(layer):
            continue
        adapters += 1
        if isinstance(layer, LoraLayer):
            terms.append(_checked(name, layer))
        elif not _holds_entries(layer):
            raise ValueError(
                f"perturb='merged': {name!r} is a {_kind(layer)}, whose merged weight is not W + s B A. {FIX}"
            )
    if not adapters:
        raise ValueError("perturb='merged' found no trainable adapter of PEFT in the model. Add one (get_peft_model), "
                         "or leave perturb at 'weights', which is the same for a model without adapters.")  # fmt: skip
    return terms


def _trainable(layer: Any) -> list[str]:
    """Names of the layer's adapters that are trained."""
    held = [getattr(layer, name) for name in layer.adapter_layer_names]
    names = {name: None for of in held for name in of}
    return [name for name in names if any(p.requires_grad for of in held if name in of for p in _parameters(of[name]))]


def _parameters(held: Any) -> list[Tensor]:
    return list(held.parameters()) if isinstance(held, nn.Module) else [held]


def _holds_entries(layer: Any) -> bool:
    kind = _kind(layer)
    if kind.startswith("tuners.shira."):
        return all(layer.scaling[name] == 1 for name in _trainable(layer))
    return any(kind.__name__ in ENTRIES for kind in type(layer).__mro__)


def _checked(name: str, layer: Any) -> LowRankTerm:
    from hf_efficient.compat.peft import maskable_lora_layers

    (adapter, *others), where = _trainable(layer), f"perturb='merged': {name!r}"
    if type(layer) not in maskable_lora_layers():
        raise ValueError(f"{where} is a {_kind(layer)}; expected LoRA on linear or convolutional layers, plain or in 4 "
                         f"or 8 bits of bitsandbytes. {FIX}")  # fmt: skip
    if others:
        raise ValueError(f"{where} trains the adapters {[adapter, *others]} at once; train one of them. {FIX}")
    if (variant := layer.lora_variant.get(adapter)) is not None:
        method = type(variant).__name__.removesuffix("Variant")
        raise ValueError(f"{where}: adapter {adapter!r} is {method}, whose merged weight is not W + s B A. {FIX}")
    if getattr(layer.get_base_layer(), "groups", 1) > 1:
        raise ValueError(f"{where} is a convolution in groups, whose LoRA PEFT cannot merge. {FIX}")
    term = LowRankTerm(layer, adapter)
    if not (term.a.requires_grad and term.b.requires_grad):
        raise ValueError(f"{where} trains one of the factors A and B alone; train both. {FIX}")
    if isinstance(term.a, DTensor) or isinstance(term.b, DTensor):
        raise ValueError(f"{where} has factors that are sharded, of which each process has a part. Use DDP. {FIX}")
    return term


def _kind(layer: object) -> str:
    return f"{type(layer).__module__.rpartition('peft.')[2]}.{type(layer).__name__}"
