"""Zeros that are put into a model's weights in one shot, before a training or after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hf_efficient.checks import check_choice, check_number, plain_numbers
from hf_efficient.extras import extra
from hf_efficient.plain_settings import PlainSettings

METHODS = ("sparsegpt", "wanda")
BEFORE, AFTER = "before", "after"


@dataclass
class PruningConfig(PlainSettings):
    """How a model's linear layers are pruned, heads and embeddings left out.

    Args:
        method: "sparsegpt" (`prune_sparsegpt`: what is left makes up for what is gone) or "wanda" (`prune_wanda`).
        sparsity: share of zeros in each layer, in (0, 1).
        when: "before" a training, in which zeros then stay zeros; or "after" it: `train_plan` trains all weights, and
            prunes what has come of it. Without a training it makes no difference.

    Raises:
        ValueError: a field is not as described above.
    """

    method: str = field(default="sparsegpt", metadata={"help": f"How weights are chosen: {', '.join(METHODS)}."})
    sparsity: float = field(default=0.5, metadata={"help": "Share of zeros in each layer, in (0, 1)."})
    when: str = field(default=BEFORE, metadata={"help": "Before a training, or after it."})

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_choice("method", self.method, METHODS)
        check_choice("when", self.when, (BEFORE, AFTER))
        check_number("sparsity", self.sparsity, 0, 1, "a share of zeros in (0, 1)", below=True, above=True)


def is_pruned(model: nn.Module, config: PruningConfig) -> bool:
    """Whether every layer that is pruned has as many zeros as it is to have; methods round a row or a block down."""
    return all(
        zeros_of(layer) >= zeros_planned(layer, config.sparsity) - inputs_of(layer)
        for layer in layers_of(model).values()
    )


def prune(model: nn.Module, config: PruningConfig, batches: Iterable[Any] | None) -> None:
    """Prune a model in place; one that has the zeros already stays as it is.

    Args:
        model: plain, not quantized.
        config: how.
        batches: calibration data, on which the model is called.

    Raises:
        ValueError: there are no batches, or a layer cannot be pruned.
    """
    if is_pruned(model, config):
        return
    if batches is None:
        raise ValueError(
            f"The plan prunes weights ({config.method!r}), which looks at what the layers are given: pass a few "
            "batches of inputs, apply(model, processor, batches)."
        )
    with extra("sparsity"):
        from hf_efficient.sparsity.pruned.sparsegpt import prune_sparsegpt
        from hf_efficient.sparsity.pruned.wanda import prune_wanda

    run: Any = dict(zip(METHODS, (prune_sparsegpt, prune_wanda), strict=True))[config.method]
    run(model, batches, config.sparsity)


def layers_of(model: nn.Module) -> dict[str, Any]:
    """The layers that are pruned: name -> layer."""
    with extra("sparsity"):
        from hf_efficient.sparsity.pruned.calibration import layers_to_prune

    return layers_to_prune(model, None, None, None)


def inputs_of(layer: Any) -> int:
    """Inputs of a layer."""
    from hf_efficient.sparsity.pruned.calibration import outputs_first

    return int(outputs_first(layer).shape[1])


def zeros_of(layer: Any) -> int:
    """Entries of a layer's weight that are zero."""
    return int(layer.weight.numel() - layer.weight.count_nonzero())


def zeros_planned(layer: Any, sparsity: float) -> int:
    """Entries that are to be zero, counted row by row."""
    inputs = inputs_of(layer)
    return int(sparsity * inputs) * (int(layer.weight.numel()) // inputs)
