"""Sparse training on several ranks: every rank has the whole masks, the same; of the values all, or its piece."""

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


def check_shards(weights: Mapping[str, SparseWeight], ranks: int, resizes: bool) -> None:
    """Note which values are sharded; refuse it otherwise than by FSDP2, and where weights would change their size.

    Raises:
        ValueError: values are flattened, or cut among some of the ranks only; or there are several ranks, or pieces,
            and weights change their size.
    """
    for name, weight in weights.items():
        values = weight.values
        if values.shape != weight.indices.shape or not (type(values.data) is Tensor or _by_rank(values, ranks)):
            raise ValueError(
                f"{name}: its values are sharded by FSDP1, tensor parallel or ZeRO-3, of which a topology cannot read "
                "all. Train with DDP, or shard with FSDP2: torch.distributed.fsdp.fully_shard(block), for each block "
                "and the model, before the optimizer is made."
            )
        weight.sharded = isinstance(values, DTensor)
    if resizes and (ranks > 1 or any(weight.sharded for weight in weights.values())):
        raise ValueError(
            "distribution='global', topology='gmp' and initial_sparsity change how many weights a layer has, which "
            "neither the buckets of DistributedDataParallel nor the pieces of FSDP2 can follow. Use distribution='erk' "
            "and another topology without initial_sparsity, or one process."
        )


def _by_rank(values: Tensor, ranks: int) -> bool:
    """Whether every rank computes with other data: their gradients are averaged over all of them."""
    return isinstance(values, DTensor) and values.device_mesh.size() == ranks


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
