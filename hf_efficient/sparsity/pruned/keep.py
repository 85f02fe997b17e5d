"""Fine-tuning a pruned model: what is zero stays zero, in any training loop, without a stored mask."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hf_efficient.active_mask import active_mask
from hf_efficient.checks import check_model
from hf_efficient.extras import extra
from hf_efficient.optimizer_state import held_ids
from hf_efficient.sparsity.storage import mask_encoding

from .masked_lora import check_configs, mask_lora, mask_of
from .weights import Names, PrunedWeight, pruned_weights

with extra("sparsity"):
    from peft.tuners.tuners_utils import BaseTunerLayer

#: Model -> what keeps its zeros; as long as the model is there.
_KEPT: WeakKeyDictionary[nn.Module, KeptSparsity] = WeakKeyDictionary()
#: Libraries whose optimizers keep states in few bits, where a zero may become a small number and move its weight.
ROUNDING = ("bitsandbytes", "torchao")
CHECK_INTERVAL = 128  # optimizer steps between two checks, once the first steps are over


class KeptSparsity:
    """What `keep_sparsity` did to a model.

    Attributes:
        weights: name -> weight whose zeros are kept.
        layers: name -> LoRA layer whose delta is masked.
    """

    def __init__(self, model: nn.Module, weights: dict[str, PrunedWeight], layers: dict[str, Any]) -> None:
        self.weights, self.layers = weights, layers
        self._model = ref(model)
        self._steps: WeakKeyDictionary[torch.optim.Optimizer, int] = WeakKeyDictionary()
        self._handles = [_mask_gradients(weight.tensor) for weight in weights.values() if not weight.quantized]
        self._bits: dict[str, Tensor] = {}  # during a step of an optimizer that rounds
        steps: list[Any] = []
        mine = ref(self, partial(_remove_all, steps))
        steps += [
            register_optimizer_step_pre_hook(partial(_before_step, mine)),
            register_optimizer_step_post_hook(partial(_after_step, mine)),
        ]
        self._handles += steps
        _KEPT[model] = self

    def __repr__(self) -> str:
        return (
            f"KeptSparsity({len(self.weights)} weights, {self.sparsity:.1%} zeros, {len(self.layers)} masked by LoRA)"
        )

    @property
    def sparsity(self) -> float:
        """Share of zeros in the kept weights, now."""
        entries = [weight.entries() for weight in self.weights.values()]
        return 1 - sum(int(e.count_nonzero()) for e in entries) / max(1, sum(e.numel() for e in entries))

    def check(self) -> None:
        """Raise unless all zeros are still zero; called after the optimizer steps 1, 2, 4, ... 128, 256, 384, ...

        Raises:
            RuntimeError: a weight has fewer zeros than at first, another tensor has taken its place, or an adapter was
                added that fills zeros.
        """
        model = self._model()
        if model is not None:
            _check_adapters(model, self.weights)
        for name, weight in self.weights.items():
            if weight.quantized:
                continue
            if weight.current is not weight.tensor:
                raise RuntimeError(
                    f"Another tensor has taken the place of {name!r}, whose zeros keep_sparsity was to keep "
                    "(load_state_dict(assign=True), or sharding as by FSDP). Call keep_sparsity after that; sharded "
                    "weights are not supported."
                )
            active = int(weight.current.count_nonzero())
            if active > weight.active:
                raise RuntimeError(
                    f"{active - weight.active} zeros of {name!r} are lost. Something moves a weight that has no "
                    "gradient: an optimizer that mixes the entries of a matrix (Muon, GaLore, Shampoo, SOAP), one "
                    "whose momentum is from a training before keep_sparsity, noise on weights, or a perturbation of "
                    "zeros (ZO-SAM: hf_efficient.active_mask.set_active_mask(p, p != 0) first). Use AdamW, SGD, "
                    "Adafactor or Lion, and load the pruned weights again: these are lost."
                )

    def remove(self) -> None:
        """Undo: weights train as before, LoRA is plain. Adapters must not be merged.

        Raises:
            ValueError: an adapter is merged.
        """
        merged = [name for name, layer in self.layers.items() if layer.merged]
        if merged:
            raise ValueError(f"The adapter of {merged[0]!r} is merged. Call unmerge_adapter() first.")
        _remove_all(self._handles)
        for layer in self.layers.values():
            layer.lora_variant = {}
        self.layers = {}
        model = self._model()
        if model is not None:
            _KEPT.pop(model, None)


def keep_sparsity(model: nn.Module, *, target_modules: Names = None, exclude_modules: Names = None) -> KeptSparsity:
    """Fine-tune a pruned model without losing its zeros: fully, with LoRA or with QLoRA. In place.

    Weights that train: their gradient is zero where they are zero, so that every optimizer which leaves a weight of
    zero gradient alone (SGD, Adam, AdamW with its weight decay, Adafactor, Lion) leaves zeros zero. Nothing is stored
    and no layer is replaced; the cost is a comparison and a fill of each weight in a backward pass. Optimizers of
    bitsandbytes and torchao, whose 8-bit states turn zeros into small numbers, get them put back after each step. A
    weight that becomes exactly zero counts as zero from then on, as long as no momentum moves it.

    LoRA: the delta of a pruned layer is masked, W + M * (s B A), M being one where W is not zero, in the forward as in
    the merge (SQFT, Munoz et al., EMNLP Findings 2024, arXiv 2410.03750). So merging keeps zeros, and changes no
    output but by rounding. It holds for every adapter of these layers, later ones too. Of 4- and 8-bit weights of
    bitsandbytes M is taken from what their codes stand for. A loaded adapter needs `keep_sparsity` again.

    Call it when the model is whole: pruned weights loaded, adapters added, before or after the optimizer is made. The
    first optimizer steps, and then one in 128, are followed by `KeptSparsity.check`.

    Args:
        model: any module; a transformers model, a `PeftModel`, one inside DDP.
        target_modules: names of modules or parameters (or their ends), or a regular expression of whole names; what is
            named is kept sparse whatever it is, an embedding or a norm. None: the weights of linear and convolutional
            layers, attention and fused experts that are not an embedding's as well.
        exclude_modules: names to leave out, e.g. a new head that starts at zero.

    Returns:
        The kept weights: `check()` at any time, `remove()` to undo.

    Raises:
        TypeError: it is no model.
        ValueError: less than 1 % of the weights are zero, a name matches none, or an adapter cannot be masked (DoRA and
            other variants, PiSSA and other inits that change the weights, tuners other than LoRA, merged adapters,
            quantizations other than bitsandbytes').
    """
    check_model(model)
    for kept in [_KEPT[module] for module in model.modules() if module in _KEPT]:
        kept.remove()
    check_configs(model)
    weights = pruned_weights(model, target_modules, exclude_modules)
    empty = [name for name, weight in weights.items() if weight.active == 0]
    if empty:
        warnings.warn(
            f"All entries of {empty[0]!r} (and of {len(empty) - 1} more weights) are zero, and will stay so. Name the "
            "module in exclude_modules if it is new and should learn.",
            stacklevel=2,
        )
    return KeptSparsity(model, weights, mask_lora(model, weights))


def _mask_gradients(parameter: Tensor) -> Any:
    """Zero the gradient where the parameter is zero; frozen parameters too, which may train later."""
    hook = partial(_masked, ref(parameter))
    frozen = not parameter.requires_grad
    parameter.requires_grad_(True)
    handle = parameter.register_hook(hook)
    parameter.requires_grad_(not frozen)
    return handle


@torch.no_grad()
def _masked(parameter: ReferenceType[Tensor], gradient: Tensor) -> Tensor:
    weight = parameter()
    if weight is None:
        return gradient
    declared = active_mask(weight)  # of a perturbation that moves zeros, as ZO-SAM's does
    return gradient.masked_fill(weight == 0 if declared is None else ~declared, 0)


def _remove_all(handles: list[Any], _: object = None) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


@torch.no_grad()
def _before_step(kept: ReferenceType[KeptSparsity], optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Note where weights are zero, if the optimizer may move such weights by rounding its state."""
    mine = kept()
    if mine is None or not any(base.__module__.partition(".")[0] in ROUNDING for base in type(optimizer).__mro__):
        return
    trained = held_ids(optimizer)
    for name, weight in mine.weights.items():
        if id(weight.tensor) in trained:
            mine._bits[name] = mask_encoding.pack(weight.tensor != 0)


@torch.no_grad()
def _after_step(kept: ReferenceType[KeptSparsity], optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Check after the steps 1, 2, 4, ... of an optimizer that trains the model."""
    mine = kept()
    model = None if mine is None else mine._model()
    if mine is None or model is None:
        return
    for name, bits in mine._bits.items():
        tensor = mine.weights[name].tensor
        tensor.masked_fill_(~mask_encoding.unpack(bits, tensor.numel()).view(tensor.shape), 0)
    mine._bits.clear()
    if optimizer not in mine._steps:
        held = held_ids(optimizer)
        mine._steps[optimizer] = 0 if any(id(p) in held for p in model.parameters()) else -1
    if mine._steps[optimizer] < 0:
        return
    steps = mine._steps[optimizer] = mine._steps[optimizer] + 1
    if steps % CHECK_INTERVAL == 0 or steps & (steps - 1) == 0:
        mine.check()


def _check_adapters(model: nn.Module, weights: dict[str, PrunedWeight]) -> None:
    owners = {id(weight.module): name for name, weight in weights.items()}
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer) or mask_of(module) is not None:
            continue
        name = owners.get(id(module.get_base_layer()))
        if name is not None and hasattr(module, "bidst_weight"):
            raise RuntimeError(
                f"A BiDST adapter was added to the layer of {name!r} after keep_sparsity. It decides itself which "
                "weights are active, with distribution='as_pruned' the same ones: undo keep_sparsity first, "
                "kept.remove() of what it returned."
            )
        if name is not None:
            raise RuntimeError(
                f"An adapter was added to the layer of {name!r} after keep_sparsity: merging it would fill the zeros. "
                "Call keep_sparsity(model) again, with the model that has the adapter."
            )
