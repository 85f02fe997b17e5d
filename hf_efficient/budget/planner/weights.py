"""Levers on the weights: zeros put in by one shot, or fewer bits on load. What each leaves of file and products."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_efficient.budget.memory import bytes_of
from hf_efficient.budget.parameters import saved
from hf_efficient.budget.plan.precision import quantization_config
from hf_efficient.budget.plan.pruning import BEFORE, METHODS, PruningConfig, layers_of, prune, zeros_of, zeros_planned
from hf_efficient.files import scratch_folder
from hf_efficient.sparsity.storage.checkpoint import dense_state_dict, encode

from .bits import BITS, kind_of_bits, quantized_weights, saved_by

SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8)  # tried where zeros count in operations, which tokens can pay for as well
SPARSEST = 0.95
LEVERS = (*METHODS, *BITS)


@dataclass(frozen=True)
class Weights:
    """One way to treat the weights.

    Args:
        name: for the table: "as they are", "int8", "wanda 60 %".
        file_bytes: predicted.
        pruning: part of the plan, or None.
        precision: part of the plan, or None.
    """

    name: str
    file_bytes: float
    pruning: PruningConfig | None = None
    precision: dict[str, Any] | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The parts of a plan that say so."""
        return {"pruning": self.pruning, "precision": self.precision}

    @property
    def sparsity(self) -> float | None:
        """Share of zeros, where they are pruned."""
        return None if self.pruning is None else self.pruning.sparsity


class WeightLevers:
    """What can be done to a model's weights.

    Args:
        model: stock; it is copied, never changed.
        names: of `LEVERS`; those whose library is missing are left out.
        when: of `PruningConfig`.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], when: str = BEFORE) -> None:
        self.model, self.when = model, when
        self.stock = Weights("as they are", float(bytes_of(saved(model))))
        self.pruners = [name for name in names if name in METHODS]
        loads = isinstance(model, PreTrainedModel)  # bits change when a model is loaded, by transformers
        kinds = {name: kind_of_bits(name) for name in names if name in BITS and loads}
        self.bits = {name: kind for name, kind in kinds.items() if kind is not None}
        self._quantized: dict[str, Weights] = {}
        self.layers = layers_of(model) if self.pruners else {}

    def options(self, limits: Mapping[str, float], fits: Callable[[Mapping[str, float]], bool]) -> list[Weights]:
        """All that may be tried under limits: those that fit the file, none of which is beaten by another for sure.

        Of a pruning method the least zeros that fit; where zeros count in operations, more of them too, up to those
        with which no visual token need be dropped.

        Args:
            limits: name of a cost -> the most it may be.
            fits: whether a forward with all tokens keeps the limits, given the density of pruned layers.
        """
        room = limits.get("file_bytes", math.inf)
        found = [self.stock] if self.stock.file_bytes <= room else []
        if not found:
            found += [bits for name in self.bits if (bits := self.quantized(name)).file_bytes <= room]
        least = self.least_sparsity(room)
        for method in self.pruners if least is not None else []:
            shares = [least] if least else []
            if "prefill_flops_nonzero" in limits and not fits(self.density(least or 0.0)):
                enough = self.least_sparsity_that(lambda s: fits(self.density(s)))
                most = SPARSEST if enough is None else enough
                shares += [s for s in (*SPARSITIES, most) if (least or 0) < s <= most]
            found += [self.pruned(method, share) for share in shares]
        return found

    def least_file(self) -> float:
        """Bytes of the smallest file."""
        small = [self.quantized(name).file_bytes for name in self.bits]
        small += [self.pruned(method, SPARSEST).file_bytes for method in self.pruners]
        return min([self.stock.file_bytes, *small])

    def least_sparsity(self, room: float) -> float | None:
        """Smallest share of zeros whose file fits; 0 where any does, None where none up to `SPARSEST` does."""
        if self.stock.file_bytes <= room:
            return 0.0
        return self.least_sparsity_that(lambda s: self.file_with(s) <= room) if self.pruners else None

    def least_sparsity_that(self, fits: Callable[[float], bool]) -> float | None:
        """Smallest share of zeros that fits, None where none up to `SPARSEST` does.

        By bisection, for more zeros cost less; to a thousandth, rounded up.
        """
        low, high = 0, round(1000 * SPARSEST)
        if not fits(high / 1000):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle / 1000) else (middle, high)
        return high / 1000

    def density(self, sparsity: float) -> dict[str, float]:
        """Name of a layer -> share of its weight that stays with such a share of zeros."""
        return {n: 1 - zeros_planned(m, sparsity) / m.weight.numel() for n, m in self.layers.items()}

    def file_with(self, sparsity: float) -> float:
        """Predicted bytes of a file of `save_sparse`: values that stay, and a bit an entry or a byte a value."""
        total = self.stock.file_bytes
        for layer in self.layers.values():
            size, entries = layer.weight.element_size(), layer.weight.numel()
            stays = entries - max(zeros_planned(layer, sparsity), zeros_of(layer))
            long_gaps = entries / 255  # at most so many bytes stand for 255 zeros each
            total -= max(0.0, entries * size - stays * size - min(entries / 8, stays + long_gaps))
        return total

    def pruned(self, method: str, sparsity: float) -> Weights:
        """Zeros in one shot."""
        return Weights(f"{method} {sparsity:.3g}", self.file_with(sparsity), PruningConfig(method, sparsity, self.when))

    def quantized(self, name: str) -> Weights:
        """Fewer bits on load, of the layers that the library takes."""
        if name not in self._quantized:
            kind = self.bits[name]
            smaller = self.stock.file_bytes - saved_by(self.model, kind)
            self._quantized[name] = Weights(name, smaller, precision=kind.precision())
        return self._quantized[name]

    def unchanged_bytes(self) -> float:
        """Of the weights that no lever changes."""
        names = {f"{name}.weight" for name in self.layers}
        names |= {name for kind in self.bits.values() for name in quantized_weights(self.model, kind)}
        weights = [self.model.get_parameter(name) for name in names]
        return self.stock.file_bytes - sum(weight.numel() * weight.element_size() for weight in weights)

    def applied(self, weights: Weights, batches: Iterable[Any]) -> Any:
        """A copy of the model with its weights treated so; the model itself where they stay.

        Args:
            weights: how.
            batches: calibration data.
        """
        if weights.precision is not None:
            return loaded_again(self.model, weights.precision)
        if weights.pruning is None:
            return self.model
        model = copy.deepcopy(self.model)
        prune(model, weights.pruning, batches)
        return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """In the block transformers draws none."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def file_bytes(model: Any, weights: Weights) -> float:
    """Bytes of the tensors that a plan's folder holds: stored sparsely where the plan prunes."""
    if weights.pruning is None:
        return float(bytes_of(saved(model)))
    tensors, _ = encode(dense_state_dict(model))
    return float(sum(tensor.nbytes for tensor in tensors.values()))


def loaded_again(model: Any, precision: dict[str, Any]) -> Any:
    """A model as it is when it is loaded with a precision: it is saved, and read back."""
    with tempfile.TemporaryDirectory() as above, scratch_folder(Path(above) / "model") as folder, no_progress_bar():
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder, quantization_config=quantization_config(precision))
    again.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return again.eval()
