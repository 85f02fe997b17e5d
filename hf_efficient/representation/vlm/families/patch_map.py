"""Which tokens of a vision encoder make each feature, seen in gradients, whatever stands between the two.

What a layer's attention gives is taken for granted, and what lies behind it is followed backwards: a feature is made of
the tokens that its gradient reaches. Numbers of features are written in binary, two passes for each of their digits:
one from the features that have it, one from the others. A token that is reached by one of the two alone, digit by
digit, makes the feature of that number and no other. Whether a gradient is zero is exact in every dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.compat.transformers import attention_name
from hf_efficient.representation.vlm.attached import stock_class_of

from .family import Unit, VisualInputs, encoded, flat
from .trial import twin
from .watch import PREFIX


class Unclear(ValueError):
    """Why it cannot be told which tokens make a feature."""


class Unused(Unclear):
    """No feature comes from a layer."""


class Failed(Unclear):
    """It was not found out, for a reason that may be gone the next time (no memory)."""


@dataclass(frozen=True)
class PatchMap:
    """The features that the tokens of an encoder make, of one call.

    Args:
        feature: (M,) long: of every token, the feature that it makes, in the order of the features; -1 for none.
        image: (M,) long: the encoder's row that a token stands in, which is an image, tile or frame, or several in one.
        count: N, the number of features.
    """

    feature: Tensor
    image: Tensor
    count: int

    @property
    def images(self) -> Tensor:
        """(N,) long: of every feature, the (first) row of the encoder that it comes from; -1 if it comes from none."""
        rows = self.image.new_full((self.count,), int(self.image.max()) + 1 if len(self.image) else 0)
        used = self.feature >= 0
        rows = rows.scatter_reduce(0, self.feature[used], self.image[used], "amin")
        return torch.where(torch.zeros_like(rows).scatter(0, self.feature[used], 1) > 0, rows, -1)

    def sums(self, values: Tensor) -> Tensor:
        """(N,) float32: the sum of values (M,) over the tokens of every feature.

        Raises:
            Unclear: there are other than M values.
        """
        if values.numel() != len(self.feature):
            raise Unclear(f"attention is of {values.numel()} tokens, features are made of {len(self.feature)}")
        feature = self.feature.to(values.device)
        used = feature >= 0
        return values.new_zeros(self.count).index_add(0, feature[used], values.flatten()[used])


class Cut:
    """A hook behind an attention layer: its output is taken for granted, and gradients are taken of what follows."""

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        several = isinstance(output, tuple)
        leaf = (output[0] if several else output).detach().requires_grad_()
        self.leaves.append(leaf)
        torch.set_grad_enabled(True)  # what comes before needs none; whoever calls the model sets it back
        return (leaf, *output[1:]) if several else leaf


def private(base: Any, attention: nn.Module) -> Any:
    """A model without its head once more, on the same weights, in eval mode, without hooks and without a pruner.

    Its attention is that of a layer `attention` of it.
    """
    own: Any = twin(base, str(attention_name(attention.config)).removeprefix(PREFIX))
    own.__class__ = stock_class_of(base)
    return own


def held(module: nn.Module, args: Any, output: Any) -> Any:
    """A hook behind an attention layer: its output is taken for granted."""
    return (output[0].detach(), *output[1:]) if isinstance(output, tuple) else output.detach()


def map_of(images: VisualInputs, layer: str, behind: Sequence[str] = ()) -> PatchMap:
    """The map of a call, by what lies behind an attention layer of this name in the model without its head.

    Encodes once, then goes backwards from the features to that layer 2 log2(N) times, in a model of its own.

    Args:
        images: the call.
        layer: name of the layer.
        behind: names of attention layers after it, in which tokens keep their places and see each other once more.

    Raises:
        Unclear: a token makes several features, or features that come from no token are not all the same, or what lies
            behind the layer cannot be followed.
    """
    own, cut = private(images.base, images.base.get_submodule(layer)), Cut()
    own.get_submodule(layer).register_forward_hook(cut)
    for name in behind:
        own.get_submodule(name).register_forward_hook(held)
    try:
        with torch.inference_mode(False), torch.no_grad():
            arguments = {name: _usable(value) for name, value in images.arguments.items()}
            container = encoded(VisualInputs(own, images.modality, arguments)).pooler_output
            features = flat(container)
            found = owners(features, cut.leaves)
    except Unclear:
        raise
    except Exception as error:  # a model of any make, on what it was not made for
        raise Failed(f"following them failed with {type(error).__name__}: {error}") from error
    result = PatchMap(found.cpu(), rows_of(cut.leaves), len(features))
    constant = features.detach()[(result.images < 0).to(features.device)]
    if len(constant) == len(features):
        raise Unused("no feature comes from its attention layer")
    if not torch.equal(constant, constant[:1].expand_as(constant)):
        raise Unclear("some features come from elsewhere")
    return result


def _usable(value: Any) -> Any:
    """A value without the marks of inference mode, which autograd refuses."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def rows_of(leaves: list[Tensor]) -> Tensor:
    """(M,) long: the row of every token of tensors (rows, tokens, D) or (tokens, D)."""
    counts = [leaf.shape[-2] for leaf in leaves for _ in range(leaf.shape[:-2].numel())]
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))


def owners(features: Tensor, leaves: list[Tensor]) -> Tensor:
    """(M,) long: of every token (..., D) of `leaves`, in their order, the one feature (N, D') it makes; -1 for none.

    Raises:
        Unclear: a token makes several.
    """
    if not leaves or not features.requires_grad:
        raise Unused("no gradient reaches its attention layer from them")
    number = torch.arange(len(features), device=features.device)
    found: Tensor | None = None
    reached: Tensor | None = None
    for digit in range(max(1, (len(features) - 1).bit_length())):
        has = (number >> digit & 1).bool()
        ones, zeros = (reach(features, leaves, one) for one in (has, ~has))
        if found is None or reached is None:
            found, reached = torch.zeros_like(ones, dtype=torch.long), ones | zeros
        if bool((ones & zeros).any()):
            raise Unclear("a token of its encoder makes several of them")
        if not torch.equal(ones | zeros, reached):
            raise Unclear("gradients reach its encoder by some features and not by all together")
        found = found + (ones.long() << digit)
    assert found is not None
    assert reached is not None
    return torch.where(reached, found, -1)


def reach(features: Tensor, leaves: list[Tensor], chosen: Tensor) -> Tensor:
    """(M,) bool: which tokens of `leaves` the gradient of those features (N, D) reaches that `chosen` (N,) names."""
    # at random, for a sum of equal parts is blind to what a norm takes out
    direction = torch.randn(features.shape[-1], generator=torch.Generator().manual_seed(0)).to(features)
    starts = direction * chosen[:, None].to(features)
    gradients = torch.autograd.grad(features, leaves, starts, retain_graph=True, allow_unused=True)
    tokens = [
        torch.zeros(leaf.shape[:-1], dtype=torch.bool, device=leaf.device) if one is None else (one != 0).any(-1)
        for one, leaf in zip(gradients, leaves, strict=True)
    ]
    return torch.cat([one.flatten() for one in tokens])


def unit_of(images: Tensor, one_run: bool) -> Unit:
    """A unit whose features (n,) come from these rows of an encoder, -1 for those that come from none.

    The latter are line breaks where they end a row of others. Where all rows but the first are of one length, what the
    first has more is no part of it: an overview stands there. Features behind the last break are in no row.

    Args:
        images: (n,) long.
        one_run: as of `Unit`.
    """
    n, empty = len(images), images < 0
    first = int(images[~empty].min()) if bool((~empty).any()) else 0
    groups = (images - first).clamp_min(0)
    several = bool((groups > 0).any())
    newline = empty & torch.cat([torch.zeros(1, dtype=torch.bool), ~empty[:-1]])  # not at the front of a row
    if not bool(newline.any()):
        return Unit(n, groups=groups if several else None, one_run=one_run)
    row = newline.long().cumsum(0) - newline.long()
    lengths = torch.bincount(row[~newline])[: int(newline.sum())].tolist()
    row[row >= len(lengths)] = -1
    if len(lengths) > 1 and len(set(lengths[1:])) == 1 and lengths[0] > lengths[1]:
        row[: lengths[0] - lengths[1]] = -1
    return Unit(n, groups=groups if several else None, row=row, newline=newline, one_run=one_run)
