"""Which layers of a model become sparse: by name where names are given, by kind where they are not."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from hf_efficient.compat.peft import ParamWrapper, add_all_linear, is_target
from hf_efficient.extras import extra
from hf_efficient.reading import is_whole

from .base_weight import BaseWeight, is_quantized
from .layer import BiDSTLayer

with extra("sparsity"):
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

if TYPE_CHECKING:
    from .config import BiDSTConfig

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# As in Cerebras' filter: words of a name that leave a layer dense where no targets are given.
DENSE_WORDS = ("classifier", "classifiers", "score", "scores", "head", "heads", "pooler")
MOST_LEFT_OUT = 0.1  # share of a model's weights, above which a warning comes


def resolve_targets(config: BiDSTConfig, modules: Mapping[str, nn.Module], model: nn.Module) -> None:
    """Replace target_modules=None (of target="weight") and "all-linear" by names that match exactly these layers.

    Raises:
        ValueError: there is no layer to target.
    """
    asked = config.target_modules
    if asked is None:
        wanted = default_targets(modules)
    elif isinstance(asked, str) and asked.lower() == "all-linear":
        wanted = [key for key in add_all_linear(config, model) if key in modules]  # not what an adapter has copied
    else:
        return
    _warn_about_left_out(asked, wanted, modules, model)
    if config.layers_to_transform is not None:
        wanted = [key for key in wanted if _in_blocks(config, key)]
    if not wanted:
        raise ValueError(f"target_modules={asked!r} found no linear or convolutional layer; name the layers.")
    name_exactly(config, set(wanted), modules)


def name_exactly(config: BiDSTConfig, wanted: set[str], modules: Mapping[str, nn.Module]) -> None:
    """Make a config target these modules and no others."""
    config.target_modules = wanted  # type: ignore[assignment]  # PEFT wants sets
    if any(is_target(config, key) for key in modules.keys() - wanted):
        # PEFT matches ends of names, and the name of one layer is the end of another's
        config.target_modules = "|".join(map(re.escape, sorted(wanted)))
        config.layers_to_transform = config.layers_pattern = None  # applied; PEFT accepts them with lists only


def default_targets(modules: Mapping[str, nn.Module]) -> list[str]:
    """Linear and convolutional layers and fused experts that are no embedding, norm or head by name or weight."""
    embeddings = embedding_weights(modules)
    return [
        key
        for key, module in modules.items()
        if not stays_dense(key)
        and id(getattr(base_of(module), "weight", None)) not in embeddings
        and not isinstance(modules.get(key.rpartition(".")[0]), nn.MultiheadAttention)  # does not call it
        and (isinstance(base_of(module), (nn.Linear, Conv1D, *CONVOLUTIONS)) or fused_parameters(base_of(module)))
    ]


def embedding_weights(modules: Mapping[str, nn.Module]) -> set[int]:
    """Ids of the weights of embeddings, which a head may have as its own."""
    return {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}


def stays_dense(key: str) -> bool:
    """Whether a name has a word for embedding, norm or head."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", key).lower())
    return any(word in DENSE_WORDS or word.startswith("embed") or word.endswith("norm") for word in words)


def _in_blocks(config: BiDSTConfig, key: str) -> bool:
    """Whether a layer lies in the blocks of `layers_to_transform`, as PEFT reads their numbers from a name."""
    if config.layers_to_transform == []:
        return True  # an empty list means all blocks, as in PEFT
    by_end = copy.copy(config)
    by_end.target_modules, by_end.exclude_modules, by_end.modules_to_save = [key.rpartition(".")[2]], None, None
    return "." in key and is_target(by_end, key)


def fused_parameters(module: nn.Module) -> list[str]:
    """Names of a module's own parameters that hold one matrix per expert, (experts, rows, columns)."""
    if type(module).__module__.startswith("torch.nn"):
        return []
    return sorted(
        name
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1 and parameter.is_floating_point()
    )


def weights_of(key: str, module: nn.Module) -> dict[str, BaseWeight]:
    """The weights of a targeted module that become sparse: name in the tuned model -> weight.

    Fused experts have several. Each gets a layer of its own, which wraps the one before; the last is the outermost.
    """
    base = base_of(module)
    whole = is_quantized(base) or isinstance(getattr(base, "weight", None), Tensor)
    names = ["weight"] if whole else fused_parameters(base)
    return {key + ".base_layer" * (len(names) - 1 - depth): BaseWeight(base, name) for depth, name in enumerate(names)}


def check_layer(key: str, module: nn.Module, parent: nn.Module | None, target: str) -> None:
    """Refuse a layer that cannot be sparse, or have a sparse delta.

    Raises:
        TypeError: it is of another type, or its parent reads its weight without calling it.
        ValueError: it is quantized or not floating-point (with target="weight"), or its weight is not what it computes
            with, or computed itself.
    """
    base = base_of(module)
    leave_out = f"exclude_modules=[{key.rpartition('.')[2]!r}]"
    if any(isinstance(parameter, DTensor) for parameter in base.parameters(recurse=False)):
        raise ValueError(
            f"target_modules matches {key!r}, whose weight is sharded (FSDP2 or tensor parallel). Make the adapter "
            "first, and shard the adapted model."
        )
    if is_quantized(base):
        _check_quantized(key, base, target)
        return
    if wraps_parameters(module):
        raise ValueError(
            f"target_modules matches {key!r}, to whose parameters LoRA adds (its target_parameters), in a way that no "
            "other adapter can be combined with. Merge it first, model = model.merge_and_unload(), or leave the layer "
            f"out: {leave_out}."
        )
    fused = fused_parameters(base)
    if isinstance(parent, nn.MultiheadAttention):
        raise TypeError(
            f"target_modules matches {key!r}, but nn.MultiheadAttention reads its weights without calling it. "
            f"Leave it out: {leave_out}."
        )
    if not fused and not isinstance(base, (nn.Linear, Conv1D, nn.Embedding, *CONVOLUTIONS)):
        raise TypeError(
            f"target_modules matches {key!r}, a {type(base).__name__}; expected Linear, Conv1D, Conv1d/2d/3d, "
            "Embedding, or experts whose parameters have three dimensions. Name the layers more exactly, or leave this "
            "one out with exclude_modules."
        )
    if not fused and "weight" not in dict(base.named_parameters(recurse=False)):
        raise ValueError(
            f"target_modules matches {key!r}, whose weight is computed from other tensors in every forward "
            "(torch.nn.utils.prune, weight_norm, another parametrization), so that merging could not write it. Make it "
            "plain first: torch.nn.utils.prune.remove(layer, 'weight') or "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'); or leave it out: {leave_out}."
        )
    if getattr(base, "max_norm", None) is not None:
        raise ValueError(
            f"target_modules matches {key!r}, an Embedding with max_norm={base.max_norm}, which changes its weight in "
            f"every forward. Make it without max_norm, or leave it out: {leave_out}."
        )


def _check_quantized(key: str, base: nn.Module, target: str) -> None:
    """Refuse a quantized layer that cannot have a sparse delta."""
    if target == "weight":
        raise ValueError(
            f"target_modules matches {key!r}, whose weight is quantized ({type(base).__name__}); its entries cannot be "
            "replaced one by one. Use target='delta', which only adds to them, load the model without quantization, or "
            "leave the layer out with exclude_modules."
        )
    sizes = [getattr(base, name, None) for name in ("in_features", "out_features")]
    if not all(is_whole(size) for size in sizes):
        raise TypeError(
            f"target_modules matches {key!r}, a quantized {type(base).__name__} without in_features and out_features; "
            "expected a linear layer. Leave it out with exclude_modules."
        )


def check_unshared(model: nn.Module, weights: Mapping[str, BaseWeight]) -> None:
    """Refuse layers that share their weight: the other layer would stay dense, and change at merging.

    Raises:
        ValueError: a weight has two names.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for key, weight in weights.items():
        owners = names.get(id(weight.tensor), ())
        if len(owners) > 1:
            last = f"model.{owners[-1]}"
            raise ValueError(
                f"The weight of {key!r} is shared: it is {' and '.join(map(repr, owners))}, and a sparse layer would "
                f"not be. Leave it out, exclude_modules=[{key!r}], or give each a weight of its own before the adapter "
                f"is made: {last} = torch.nn.Parameter({last}.clone()), and for tied embeddings "
                "model.config.tie_word_embeddings = False; then save the model. (Loading with "
                "tie_word_embeddings=False would make a random head.)"
            )


def _warn_about_left_out(
    asked: str | None, wanted: Iterable[str], modules: Mapping[str, nn.Module], model: nn.Module
) -> None:
    """Warn if many weights, beside embeddings, norms and heads, are not targeted."""
    taken, embeddings = set(wanted), embedding_weights(modules)
    left: dict[str, int] = {}
    for key, module in modules.items():
        base = base_of(module)
        if key in taken or stays_dense(key) or isinstance(base, nn.Embedding):
            continue
        own = [(name, p) for name, p in base.named_parameters(recurse=False) if id(p) not in embeddings]
        count = sum(parameter.numel() for name, parameter in own if parameter.dim() > 1 and not stays_dense(name))
        if count:
            left[key or "the model itself"] = count
    share = sum(left.values()) / max(1, sum(p.numel() for p in model.parameters()))
    if share <= MOST_LEFT_OUT:
        return
    largest = sorted(left, key=lambda key: -left[key])[:3]
    ends = sorted({key.rpartition(".")[2] for key in largest if key in modules and _can_be_sparse(modules[key])})
    fix = "They cannot be made sparse"
    if ends:
        fix = f"Add them by name, target_modules=[..., {', '.join(map(repr, ends))}]"
    warnings.warn(
        f"target_modules={asked!r} leaves out {share:.0%} of the model's weights, in {len(left)} modules, the largest "
        f"being {', '.join(map(repr, largest))}. They stay as they are, and `sparsity` counts the other layers only. "
        f"{fix}; `model_sparsity` in the log counts all weights.",
        stacklevel=2,
    )


def _can_be_sparse(module: nn.Module) -> bool:
    try:
        check_layer("", module, None, "weight")
    except (TypeError, ValueError):
        return False
    return True


def base_of(module: nn.Module) -> nn.Module:
    """The layer inside all adapters."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def weight_of(module: nn.Module) -> Tensor:
    """The numbers of a layer's weight, adapted or not."""
    return BaseWeight(base_of(module), module.parameter if isinstance(module, BiDSTLayer) else "weight").numbers()


def wraps_parameters(module: nn.Module) -> bool:
    """Whether LoRA adds to parameters of this module, in place of its call."""
    return any(isinstance(layer, ParamWrapper) for layer in module.modules())


def inside_wrapper(key: str, model: nn.Module) -> bool:
    """Whether a module lies inside an earlier adapter's layer."""
    parts = key.split(".")
    outer = (model.get_submodule(".".join(parts[:i])) for i in range(1, len(parts)))
    return any(isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)) for module in outer)
