"""Pruned tiny models."""

from typing import TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

M = TypeVar("M", bound=nn.Module)


def pruned(model: M, share: float = 0.5, kinds: tuple[type, ...] = (nn.Linear, nn.Conv2d, Conv1D)) -> M:
    """Half of each weight zero, the same half every time; embeddings, and heads that are tied to them, whole."""
    generator = torch.Generator().manual_seed(5)
    whole = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, kinds) and id(module.weight) not in whole:
                weight: torch.Tensor = module.weight  # type: ignore[assignment]
                weight.mul_(torch.rand(weight.shape, generator=generator) >= share)
    return model


def zeros_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name of each pruned weight -> where it is zero."""
    return {n: p == 0 for n, p in model.named_parameters() if p.dim() > 1 and bool((p == 0).float().mean() > 0.2)}
