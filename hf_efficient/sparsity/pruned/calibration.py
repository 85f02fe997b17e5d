"""Pruning in one shot by calibration batches: which layers, and what their inputs are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_efficient.checks import check_model, check_number
from hf_efficient.extras import extra
from hf_efficient.modes import evaluating
from hf_efficient.reading import shown
from hf_efficient.sparsity.pattern import NMPattern
from hf_efficient.sparsity.tuner.targets import stays_dense

from .weights import Names, as_names, matching

with extra("sparsity"):
    from peft.tuners.tuners_utils import BaseTunerLayer

#: Prunes a layer: its weight as (outputs, inputs), changed in place, and the statistics of its inputs.
Prune = Callable[[Tensor, Tensor], None]


def check_amount(sparsity: float | None, pattern: str | None) -> tuple[float, NMPattern | None]:
    """The share of zeros, and the pattern by which they lie.

    Args:
        sparsity: share of zeros in each layer, in (0, 1); None: 0.5, or what the pattern says.
        pattern: "N:M", e.g. "2:4"; None: any entries.

    Raises:
        ValueError: one is out of range, or both are given.
    """
    if pattern is None:
        share = 0.5 if sparsity is None else sparsity
        check_number("sparsity", share, 0, 1, "a share of zeros in (0, 1), e.g. 0.5", below=True, above=True)
        return share, None
    groups = NMPattern.parse(pattern)
    if sparsity is not None:
        raise ValueError(f"sparsity={sparsity} is not read with pattern={pattern!r}, which says it: leave it out.")
    return groups.sparsity, groups


def layers_to_prune(
    model: nn.Module, targets: Names, excluded: Names, pattern: NMPattern | None
) -> dict[str, nn.Module]:
    """Linear layers and Conv1D of GPT-2: name -> layer, in the order of the model.

    Args:
        model: plain, not quantized.
        targets: names as for `keep_sparsity`; None: all but heads and embeddings.
        excluded: names to leave out.
        pattern: must fit the layers' inputs; or None.

    Raises:
        TypeError: it is no model.
        ValueError: the model has adapters, a layer is quantized or does not fit the pattern, a name matches none, or
            there is none.
    """
    check_model(model)
    found: dict[str, nn.Module] = {}
    unmatched = set(as_names(targets)) | set(as_names(excluded))
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise ValueError(f"The model has an adapter ({name!r}): prune the plain model, then add the adapter.")
        left_out = matching(name, "weight", excluded)
        unmatched -= left_out  # of what would not be pruned anyway, too: lists of exclusions are shared
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        matched = matching(name, "weight", targets)
        unmatched -= matched
        if left_out or not (matched if targets is not None else not stays_dense(name)):
            continue
        if not module.weight.is_floating_point() or type(module.weight.data) is not Tensor:
            raise ValueError(f"The weight of {name!r} is quantized: prune the model before it is quantized.")
        found[name] = module
    if unmatched:
        raise ValueError(
            f"No layer to prune is named {', '.join(map(repr, sorted(unmatched)))}: expected linear layers."
        )
    if not found:
        raise ValueError(f"target_modules={targets!r} found no linear layer to prune; name the layers.")
    if pattern is not None:
        pattern.check_inputs((name, outputs_first(layer).shape[1]) for name, layer in found.items())
    return found


def outputs_first(layer: nn.Module) -> Tensor:
    """The weight of a layer as (outputs, inputs); a view."""
    weight: Tensor = layer.weight.data  # type: ignore[union-attr,assignment]
    return weight.T if isinstance(layer, Conv1D) else weight


@torch.no_grad()
def prune_by_inputs(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, nn.Module],
    measure: Callable[[Tensor], Tensor],
    prune: Prune,
    largest: int,
) -> None:
    """Measure the inputs of the layers on calibration batches, and prune by what was measured.

    Layers are taken in order, as many at a time as `largest` numbers of statistics allow; those behind see the outputs
    of those that are pruned already. The model is in eval mode meanwhile.

    Args:
        model: called with each batch: `model(**batch)` of a mapping, `model(*batch)` of a tuple or list, else
            `model(batch)`. Where a mapping has an `attention_mask` (B, T), padding is not measured.
        batches: calibration data, on the model's device; gone through once for each group of layers.
        layers: name -> layer.
        measure: inputs (tokens, inputs) float32 -> their statistics, which are added up over batches.
        prune: see `Prune`; statistics are averages over tokens.
        largest: numbers of statistics in memory at a time.

    Raises:
        ValueError: there is no batch, or one in place of many, or one of a kind that the model does not take; a
            layer is not called by the model, or inputs are not finite.
    """
    data = _checked(batches)
    with evaluating(model):
        for group in _groups(layers, measure, largest):
            sums: dict[str, Tensor] = {}
            counts = dict.fromkeys(group, 0)
            calls = 0
            for number, batch in enumerate(data):
                with _measured(group, batch, measure, sums, counts):
                    _call(model, batch, number)
                calls += 1
            if not calls:
                raise ValueError("batches is empty; expected calibration data that the model is called with.")
            for name, layer in group.items():
                if not counts[name]:
                    raise ValueError(
                        f"{name!r} was not called with any token of the calibration batches: give batches that use "
                        "it, or leave it out with exclude_modules."
                    )
                mean = sums.pop(name) / counts[name]
                if not bool(mean.isfinite().all()):
                    raise ValueError(f"The inputs of {name!r} are not finite on the calibration batches.")
                prune(outputs_first(layer), mean)


def _checked(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches that can be gone through more than once."""
    if isinstance(batches, (Mapping, Tensor, str, bytes)) or _is_array(batches):
        raise ValueError(f"batches is one {type(batches).__name__}; expected several batches, or [batch] if it is one.")
    try:
        once = iter(batches)  # not only what is `Iterable`: datasets of torch have __getitem__ alone
    except TypeError as error:
        raise ValueError(
            f"batches={shown(batches)} cannot be gone through; expected calibration data that the model is called "
            "with, e.g. [batch]."
        ) from error
    return list(once) if once is batches else batches


def _wrong_kind(number: int, batch: Any) -> str:
    """What a model of torch can seldom be called with, in a batch that it did not take; "" where there is nothing."""
    if not isinstance(batch, (Mapping, tuple, list, Tensor)):
        return (
            f"batch {number} is {shown(batch)}; expected a mapping, a tuple, a list or a tensor that the model is "
            "called with (torch.as_tensor makes one of an array)."
        )
    inside = batch.values() if isinstance(batch, Mapping) else () if isinstance(batch, Tensor) else batch
    for value in filter(_is_array, inside):
        return f"batch {number} holds {shown(value)}; expected tensors: torch.as_tensor makes one of it."
    return ""


def _is_array(value: object) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, Tensor)


def _groups(
    layers: Mapping[str, nn.Module], measure: Callable[[Tensor], Tensor], largest: int
) -> Iterator[dict[str, nn.Module]]:
    """Layers one after the other, as many together as `largest` numbers of statistics allow, one at least."""
    group: dict[str, nn.Module] = {}
    total = 0
    for name, layer in layers.items():
        size = _size(layer, measure)
        if group and total + size > largest:
            yield group
            group, total = {}, 0
        group[name] = layer
        total += size
    yield group


def _size(layer: nn.Module, measure: Callable[[Tensor], Tensor]) -> int:
    return measure(torch.empty(1, outputs_first(layer).shape[1], device="meta")).numel()


@contextmanager
def _measured(
    layers: Mapping[str, nn.Module],
    batch: Any,
    measure: Callable[[Tensor], Tensor],
    sums: dict[str, Tensor],
    counts: dict[str, int],
) -> Iterator[None]:
    """Measure what the layers are called with."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None

    def hook(name: str) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x: Tensor = inputs[0]
            real = isinstance(mask, Tensor) and mask.dim() == 2 and x.shape[:2] == mask.shape and x.dim() == 3
            tokens = x[mask.bool()] if real else x.flatten(0, -2)  # type: ignore[union-attr]
            found = measure(tokens.detach().float())
            sums[name] = found if name not in sums else sums[name].add_(found)
            counts[name] += len(tokens)

        return see

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(model: nn.Module, batch: Any, number: int) -> None:
    """Call the model as it takes a batch; what is wrong with one is said only where the model does not take it."""
    try:
        if isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, (tuple, list)):
            model(*batch)
        else:
            model(batch)
    except Exception as error:
        if wrong := _wrong_kind(number, batch):
            raise ValueError(wrong) from error
        raise
