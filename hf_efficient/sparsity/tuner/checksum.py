"""The checksum of an adapter's tensors, which its config holds."""

from __future__ import annotations

import re
import zlib

import torch
from torch import Tensor

OTHER = (
    "The adapter's tensors are not those that were saved (their checksum differs): the file is damaged, or "
    "it and adapter_config.json are of different adapters. Fetch both again. If you changed the tensors "
    'yourself, set "checksum" to null in adapter_config.json.'
)


def checksum(state_dict: dict[str, Tensor], adapter_name: str) -> int:
    """CRC-32 over names and bytes of an adapter's tensors; independent of their order and of the adapter's name."""
    total = 0
    for key, tensor in state_dict.items():
        where = re.search(rf"\.(bidst_weight|bidst_bias|modules_to_save)\.{re.escape(adapter_name)}(\.|$)", key)
        if where is None:
            continue
        name = key[: where.start()].removeprefix("base_model.model.") + where[1] + key[where.end() :]
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        total ^= zlib.crc32(raw, zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()))
    return total
