"""Which weights of a pruned model are kept sparse, and how many of their entries are active."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from weakref import ReferenceType, ref

from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from hf_efficient.compat.peft import dequantized_weight
from hf_efficient.compat.torch import AnyConv, coded_by_torchao
from hf_efficient.extras import extra
from hf_efficient.reading import shown
from hf_efficient.sparsity.tuner.budgets import FEWEST_ZEROS
from hf_efficient.sparsity.tuner.targets import fused_parameters, stays_dense

with extra("sparsity"):
    from peft.tuners.tuners_utils import BaseTunerLayer

KINDS = (nn.Linear, AnyConv, Conv1D, nn.MultiheadAttention)

Names = str | Sequence[str] | None


@dataclass
class PrunedWeight:
    """A weight that has zeros.

    Args:
        owner: the module that has it; by weak reference, so that nothing of this keeps a model in memory.
        attribute: its name in the module.
        tensor: the parameter itself, to notice when another takes its place.
        active: number of its entries that are not zero.
    """

    owner: ReferenceType[nn.Module]
    attribute: str
    tensor: Tensor
    active: int = 0

    @property
    def module(self) -> nn.Module:
        """The module that owns it."""
        module = self.owner()
        assert module is not None  # as long as the model is there
        return module

    @property
    def current(self) -> Tensor:
        """What the module holds now under this name."""
        tensor: Tensor = getattr(self.module, self.attribute)
        return tensor

    @property
    def quantized(self) -> bool:
        """Whether its entries are stored as codes, which no optimizer trains."""
        return not self.tensor.is_floating_point()

    def entries(self) -> Tensor:
        """Its entries as numbers; of a quantized weight, what its codes stand for."""
        return dequantized_weight(self.module) if self.quantized else self.current.detach()


def pruned_weights(model: nn.Module, targets: Names = None, excluded: Names = None) -> dict[str, PrunedWeight]:
    """The weights of a model that have zeros to keep: name -> weight.

    Args:
        model: plain, quantized, or with adapters, whose own weights are left out.
        targets: names as for `keep_sparsity`; None: linear and convolutional layers, attention and fused experts.
        excluded: names to leave out.

    Raises:
        ValueError: a name matches nothing, or the weights have hardly any zeros.
    """
    if prune.is_pruned(model):
        raise ValueError(
            "The model is pruned by torch.nn.utils.prune, whose masks keep its zeros already. Make them permanent "
            "first: torch.nn.utils.prune.remove(module, name) for every pruned module."
        )
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, PrunedWeight] = {}
    seen: set[int] = set()
    entries = active = 0
    unmatched = set(as_names(targets)) | set(as_names(excluded))
    for name, module, attribute in _parameters(model):
        matched = matching(name, attribute, targets)
        left_out = matching(name, attribute, excluded)
        unmatched -= matched | left_out
        parameter = getattr(module, attribute)
        taken = bool(matched) if targets is not None else _by_kind(name, module, attribute, embeddings)
        if left_out or not taken or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if coded_by_torchao(parameter):
            raise ValueError(
                f"The weight of {name!r} is quantized by torchao, whose codes are not kept. Quantize the "
                "pruned model by bitsandbytes, or call keep_sparsity on the model in 16 or 32 bits."
            )
        weight = PrunedWeight(ref(module), attribute, parameter)
        numbers = weight.entries()
        weight.active = int(numbers.count_nonzero())
        entries, active = entries + numbers.numel(), active + weight.active
        if weight.active < numbers.numel():
            found[f"{name}.{attribute}".lstrip(".")] = weight
    if unmatched:
        raise ValueError(f"No weight of the model is named {', '.join(map(repr, sorted(unmatched)))}.")
    if entries == 0 or 1 - active / entries < FEWEST_ZEROS:
        raise ValueError(
            f"{entries - active} of the {entries} weights that keep_sparsity would keep sparse are zero "
            f"({0 if not entries else 1 - active / entries:.2%}), expected at least {FEWEST_ZEROS:.0%}: this is not a "
            "pruned model, or its zeros are lost, as by merging a plain LoRA. Load the pruned checkpoint, or name the "
            "layers that are sparse: target_modules=[...]."
        )
    return found


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name of module, module and name of every parameter, without those that adapters have added."""
    inside_adapters: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside_adapters or "\0"):
            continue
        if isinstance(module, BaseTunerLayer):
            inside_adapters += tuple(f"{name}.{part}." for part in module.adapter_layer_names)
        for attribute, _ in module.named_parameters(recurse=False):
            yield name, module, attribute


def _by_kind(name: str, module: nn.Module, attribute: str, embeddings: set[int]) -> bool:
    parameter = getattr(module, attribute)
    if id(parameter) in embeddings or "bias" in attribute:
        return False
    if isinstance(module, KINDS):
        return attribute.endswith("weight")
    return attribute in fused_parameters(module) and not stays_dense(f"{name}.{attribute}")


def as_names(names: Names) -> Sequence[str]:
    """The names one by one; a regular expression is one.

    Raises:
        ValueError: something is no name.
    """
    given = () if names is None else (names,) if isinstance(names, str) or not isinstance(names, Iterable) else names
    for name in given:
        if not isinstance(name, str):
            raise ValueError(f"names={shown(name)} is no name; expected names of modules, or one regular expression.")
    return given


def matching(name: str, attribute: str, names: Names) -> set[str]:
    """Those of the names that mean this parameter: by the end of its name or of its module's, biases by their own."""
    module = name.replace(".base_layer", "")
    whole = f"{module}.{attribute}"
    meant = (whole,) if "bias" in attribute else (whole, module)
    if isinstance(names, str):
        return {names} if any(re.fullmatch(names, one) for one in meant) else set()
    return {given for given in names or () for one in meant if one == given or one.endswith(f".{given}")}
