"""Whether the importance rebuilt from an encoder's queries and keys is that of its own attention map: tried once.

The encoder runs on noise with eager attention, which gives a map; what a `Watch` rebuilds is held against it. Then it
runs with the attention it has, where the same must come out. It is tried on a twin that shares the weights and nothing
else, so that the encoder's configs, modes, hooks and threads are left alone. Once a class and config, or the first time
the weights are there. What keeps an encoder from being tried (no memory, no kernel) says nothing of its kind: it is
remembered of this encoder alone, until a pruner is attached again.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_efficient.compat.torch import compiled_module
from hf_efficient.compat.transformers import attention_function, attention_name, set_attention_name

from . import towers
from .watch import PREFIX, Given, Watch, seen_keys

TOLERANCE = 1e-3  # of a probability, relative to the largest of its row; computed in float32
#: of importance with the attention the encoder has, relative to how far it varies: float32, shorter floats
DRIFT = (1e-2, 0.2)

#: (class, config, ...) -> fault, None if there is none
_TRIED: dict[Any, str | None] = {}
#: encoder -> {(layer, attention): the same, or why it could not be tried}; spares the way to the key above
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, str | None]] = weakref.WeakKeyDictionary()


def offers(tower: nn.Module, layer: int, run: Callable[[nn.Module], Any]) -> tuple[tuple[str, ...], str | None]:
    """Sources of importance that an encoder has, the best first; and why, where it has none.

    Args:
        tower: the vision encoder.
        layer: which of `towers.attention_layers(tower)` is looked at; may be negative.
        run: runs the encoder it is given, this one or its twin, on two small pictures that differ in every patch. Asked
            only if no encoder of this class and config was tried before.
    """
    modules = towers.attention_layers(tower)
    if not modules:
        return (), "its layers do not call attention through the interface of transformers"
    layer %= len(modules)
    fault = fault_of(tower, layer, modules[layer].config, run)
    return (() if fault else ("cls", "received") if towers.prefix_tokens(tower) else ("received",)), fault


def fault_of(tower: nn.Module, layer: int, config: Any, run: Callable[[nn.Module], Any]) -> str | None:
    """Why attention rebuilt of a layer, whose config this is, is not the encoder's.

    None if it is, or while the weights are not there.
    """
    name = str(attention_name(config)).removeprefix(PREFIX)
    known = _KNOWN.setdefault(tower, {})
    if (layer, name) in known:
        return known[layer, name]
    key = (type(tower), config.to_json_string(use_diff=False), dtype_of(tower), layer, name)
    if key not in _TRIED:  # two threads may both try; they find the same
        if any(weight.is_meta or not weight.numel() for weight in tower.parameters()):
            return None
        try:
            _TRIED[key] = tried(tower, layer, name, run)
        except Exception as error:  # whatever an encoder raises: it is left alone then
            return known.setdefault((layer, name), f"trying it failed with {type(error).__name__}: {error}")
    return known.setdefault((layer, name), _TRIED[key])


def forget(base: nn.Module) -> None:
    """Let encoders of a (base) model that could not be tried be tried again when they are asked for next."""
    for module in base.modules():
        _KNOWN.pop(module, None)


@torch.no_grad()
def tried(tower: nn.Module, layer: int, name: str, run: Callable[[nn.Module], Any]) -> str | None:
    """What `fault_of` tells, not remembered, and an error where the encoder raises; `name` is the attention it has."""
    with torch.autocast(next(tower.parameters()).device.type, enabled=False):
        eager, stock = twin(tower, "eager"), twin(tower, name)
        with Comparison(towers.attention_layers(eager)[layer], "received") as watch:
            run(eager)
        if not watch.given:
            return f"attention of its layer {layer} was not called when it ran"
        if watch.fault is not None or name == "eager":
            return watch.fault
        with Watch(towers.attention_layers(stock)[layer], "received") as other:
            run(stock)
        return drift(watch.result(), other.result(), DRIFT[dtype_of(tower).itemsize < 4], name)


class Comparison(Watch):
    """A watch of a layer with eager attention, that holds what it notes against the map of that attention."""

    fault: str | None = None

    def note(self, given: Given, value: Tensor, rest: dict[str, Any]) -> None:
        super().note(given, value, rest)
        queries, keys, bias = next(iter(given.parts()))
        scale = queries.shape[-1] ** -0.5 if given.scale is None else given.scale
        logits = queries.float() @ keys.float().transpose(-1, -2) * scale
        # once as they are, and once spread to where a softmax tells most
        for factor in (1.0, 1 / max(float(logits.std()), 1e-30)):
            rebuilt = (logits * factor if bias is None else logits * factor + bias).softmax(-1)
            truth = self.map(factor * given.queries.float(), given.keys.float(), value.float(), given.mask, rest)
            if truth is None or truth.shape != rebuilt.shape:
                self.fault = "its eager attention gives no map of queries and keys"
                return
            real = slice(None) if bias is None else seen_keys(bias.flatten(0, 1))
            off = ((rebuilt - truth).abs().amax(-1) / truth.abs().amax(-1))[..., real].max()
            if not off <= TOLERANCE:
                self.fault = f"attention rebuilt of queries and keys is {off:.2g} off the map it gives itself"

    def map(self, queries: Tensor, keys: Tensor, value: Tensor, mask: Any, rest: dict[str, Any]) -> Tensor | None:
        """(B, H, N, N): the map that the layer's eager attention gives of these, None where it gives none."""
        function: Any = attention_function("eager", self.module)
        mask = mask.float() if isinstance(mask, Tensor) and mask.is_floating_point() else mask
        found: Tensor | None = function(self.module, queries, keys, value, mask, **rest)[1]
        return None if found is None else found.float()


def drift(eager: Tensor, stock: Tensor, limit: float, name: str) -> str | None:
    """Whether importance with the attention an encoder has departs from that with eager attention."""
    if eager.shape != stock.shape:
        return f"with {name} attention it looks at {tuple(stock.shape)} tokens, with eager at {tuple(eager.shape)}"
    varies = max(float((eager - eager.mean()).norm()), 1e-3 * float(eager.norm()))
    off = float((eager - stock).norm()) / varies
    return None if off <= limit else f"its importance with {name} attention is {off:.2g} off that with eager attention"


def twin(tower: nn.Module, attention: str) -> nn.Module:
    """The encoder once more, on its weights: in eval mode, without hooks, uncompiled, configs naming `attention`."""
    compiled = {id(module): inner for module in tower.modules() if (inner := compiled_module(module)) is not None}
    modules: list[Any] = [module for module in tower.modules() if id(module) not in compiled]

    def bare(module: Any) -> Any:  # what calls the module, not its twin, has no twin
        while id(module) in compiled:
            module = compiled[id(module)]
        return module

    twins: dict[int, Any] = {id(module): object.__new__(type(module)) for module in modules}
    configs: dict[int, Any] = {}
    for module in modules:
        values = twins[id(module)].__dict__
        for name, value in vars(module).items():
            if isinstance(value, OrderedDict) and "_hooks" in name:
                value = OrderedDict()
            elif isinstance(value, PreTrainedConfig):
                value = configs.setdefault(id(value), copy.copy(value))
            elif isinstance(value, types.MethodType) and value.__self__ is module:
                value = types.MethodType(value.__func__, twins[id(module)])
            elif isinstance(value, functools.partial) and any(one is module for one in value.args):
                value = functools.partial(value.func, *(twins[id(module)] if a is module else a for a in value.args))
            elif name == "_modules":
                value = {part: twins.get(id(bare(child))) for part, child in value.items()}
            values[name] = value
        values["training"] = False
        values.pop("_output_capturing_hooks_installed", None)  # which are hooks: installed again when asked for
        values.pop("_compiled_call_impl", None)  # of `module.compile()`: a call of the module, not of its twin
    for config in configs.values():
        set_attention_name(config, attention)
    found: nn.Module = twins[id(bare(tower))]
    return found


def dtype_of(tower: nn.Module) -> torch.dtype:
    """The dtype an encoder computes in."""
    return next(weight.dtype for weight in tower.parameters() if weight.is_floating_point())


def noise(tower: nn.Module, *shape: int) -> Tensor:
    """Pixels in [-1, 1] of a shape, the same every time, as an encoder takes them."""
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0), device="cpu") * 2 - 1
    return pixels.to(next(tower.parameters()).device, dtype_of(tower))
