"""Checks of the state of sparse training in a checkpoint, before it is used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_efficient.reading import Fields, shown
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.storage import mask_encoding
from hf_efficient.sparsity.topology import Topology
from hf_efficient.sparsity.topology.base import expect

WHERE = "The state of sparse training in the optimizer (or checkpoint)"
ADVICE = "It is damaged or from another model: resume from another checkpoint, or start over."


def check_state(state: object, weights: Mapping[str, SparseWeight], topology: Topology) -> None:
    """Check that a state belongs to a training of these weights.

    Args:
        state: the entry "sparsity" of the optimizer's first parameter group.
        weights: name -> weight.
        topology: whose memory it is.

    Raises:
        ValueError: a type, a length, a number or an index is wrong; the message names it.
    """
    fields = Fields(state, WHERE)
    fields.whole("steps", 0, 2**31 - 1)
    fields.whole("updates", 0, 2**31 - 1)
    fields.whole("moved", 0, sum(weight.numel for weight in weights.values()))
    memory, ever = fields.fields("memory").values, fields.fields("ever").values
    if not memory and not ever and not fields["steps"]:
        return  # a training that has not begun
    for known in (memory, ever):
        if known.keys() != weights.keys():
            other = sorted(map(str, known.keys() ^ weights.keys()))
            raise ValueError(f"{WHERE} has other layers than the model, {shown(other[:3])} among them. {ADVICE}")
    indices = fields.fields("indices") if "indices" in fields.values else None  # earlier versions have none
    for name, weight in weights.items():
        try:
            _check_weight(memory[name], ever[name], weight)
            if indices is not None and indices.whole(name, -(2**63), 2**63) != fingerprint(weight.indices):
                raise ValueError("other weights are active in the model than when it was saved")
            topology.check_memory(weight, memory[name])
        except ValueError as error:
            raise ValueError(f"{WHERE}: {shown(name)}: {error}. {ADVICE}") from error


def _check_weight(memory: object, ever: object, weight: SparseWeight) -> None:
    """Check what the engine itself keeps."""
    if not isinstance(memory, dict) or not all(isinstance(value, Tensor) for value in memory.values()):
        raise ValueError(f"memory is {shown(memory)}, expected tensors by name")
    if not isinstance(ever, Tensor):
        raise ValueError(f"ever is {shown(ever)}, expected a bitmap")
    mask_encoding.unpack(ever, weight.numel)
    if "csr" in memory:
        expect(memory, "csr", torch.bool)
    if "initial_gradient" in memory:
        expect(memory, "initial_gradient", torch.float32, weight.numel)


def fingerprint(indices: Tensor) -> int:
    """A checksum of indices in their order, computed on their device."""
    odd = torch.arange(1, 2 * len(indices), 2, device=indices.device)
    return int((odd * (indices.long() + 1)).sum())
