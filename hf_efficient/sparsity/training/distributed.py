"""Sparse training on several ranks: every rank holds all weights, with the same masks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from hf_efficient.sparsity.sparse_weight import SparseWeight


def refuse_shards(weights: Mapping[str, SparseWeight], ranks: int, resizes: bool) -> None:
    """Refuse sharded weights, and weights that would change their size under DDP.

    Raises:
        ValueError: values are sharded, or there are several ranks and weights change their size.
    """
    for name, weight in weights.items():
        if type(weight.values.data) is not Tensor or weight.values.shape != weight.indices.shape:
            raise ValueError(
                f"{name}: its values are sharded (FSDP, tensor parallel or ZeRO-3), but a topology needs all of "
                "them on each rank. Train with DDP; or let FSDP2 shard all that does not train, fully_shard(block, "
                "ignored_params={p for p in model.parameters() if p.requires_grad}), for each block and the model."
            )
    if resizes and ranks > 1:
        raise ValueError(
            "distribution='global', topology='gmp' and initial_sparsity change how many weights a layer has, which the "
            "buckets of DistributedDataParallel cannot follow. Use distribution='erk' and another topology without "
            "initial_sparsity, or one process."
        )


def average_under_fsdp(model: nn.Module) -> list[RemovableHandle]:
    """Average over ranks the gradients of what FSDP2 leaves whole in a model that it shards: nobody else does.

    Returns:
        Handles that undo it; none where the model is not sharded, or there is one rank.
    """
    if not any(isinstance(module, FSDPModule) for module in model.modules()) or dist.get_world_size() == 1:
        return []
    whole = [p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    return [parameter.register_hook(_mean_over_ranks) for parameter in whole]


def _mean_over_ranks(gradient: Tensor) -> Tensor:
    mean = gradient.clone()
    dist.all_reduce(mean)
    return mean.div_(dist.get_world_size())


def compare_masks(weights: Mapping[str, SparseWeight], step: int) -> None:
    """Compare the masks of all ranks.

    Raises:
        RuntimeError: they differ.
    """
    crc = 0
    for weight in weights.values():
        crc = zlib.crc32(weight.indices.cpu().numpy().tobytes(), crc)
    device = next(iter(weights.values())).indices.device
    mine = torch.tensor([crc], dtype=torch.int64, device=device)
    all_ranks = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_ranks, mine)
    if any(int(other) != crc for other in all_ranks):
        raise RuntimeError(
            f"Masks differ between ranks after step {step} (checksums {[int(c) for c in all_ranks]}). Give "
            "all ranks the same seed and the same checkpoint."
        )
