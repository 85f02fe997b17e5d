"""A linear layer for inference that holds its active weights only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_efficient.compat.torch import change_count

from .product import BLOCK, columns_of, multiply


class CSRLinear(nn.Module):
    """A linear layer for inference that holds its active weights only, as CSR.

    CSR products do not check where they read. So indices are checked before they are used: when a state dict is loaded,
    and when the tensors or their content were changed in any other way. The checked matrix is kept for later forwards.
    Products are computed in float32, whatever the model is cast to; results have the dtype of the inputs.

    Args:
        weight: (out, in) float32, most of it zero.
        bias: (out,) or None.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        matrix = weight.detach().to_sparse_csr()
        self.register_buffer("starts", matrix.crow_indices().int())
        self.register_buffer("columns", matrix.col_indices().int())
        self.register_buffer("values", matrix.values())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._checked: _Checked | None = None

    def matrix(self) -> Tensor:
        """(out, in) CSR in float32; it shares the memory of `values` if these are.

        Raises:
            ValueError: `starts`, `columns` and `values` do not make such a matrix.
        """
        parts = (self.starts, self.columns, self.values)
        shared = self.values.dtype == torch.float32  # so that a change of the values is one of the matrix
        stamps = tuple(
            (part.data_ptr(), 0 if part.is_inference() else change_count(part)) for part in parts[: 2 if shared else 3]
        )
        known = self._checked
        if known is None or known.stamps != (*stamps, self.values.data_ptr()):
            shape = (self.out_features, self.in_features)
            check_csr(*parts, shape, "CSRLinear")
            matrix = torch.sparse_csr_tensor(
                self.starts, self.columns, self.values.float(), shape, check_invariants=False
            )
            known = self._checked = _Checked((*stamps, self.values.data_ptr()), parts, matrix)
        return known.matrix

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # type: ignore[override]
        names = ("starts", "columns", "values")
        starts, columns, values = (state_dict.get(f"{prefix}{name}", getattr(self, name)) for name in names)
        shape = (self.out_features, self.in_features)
        check_csr(starts, columns, values, shape, prefix.rstrip(".") or "CSRLinear")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": None}  # copies have tensors of their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_checked": None})

    @torch.compiler.disable  # compilers do not support CSR products
    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), of the same dtype. No gradients."""
        with torch.no_grad():
            rows = x.reshape(-1, self.in_features).float()
            matrix, y = self.matrix(), rows.new_empty(len(rows), self.out_features)
            for block, out in zip(columns_of(rows), y.split(BLOCK), strict=True):
                multiply(matrix, block, out)
            if self.bias is not None:
                y += self.bias
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{self.in_features}, {self.out_features}, active={len(self.values)}"


class _Checked(NamedTuple):
    """Addresses and versions of checked tensors, and their matrix; held, so that the addresses stay theirs."""

    stamps: tuple[Any, ...]
    parts: tuple[Tensor, Tensor, Tensor]
    matrix: Tensor


def check_csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], name: str) -> None:
    """Check that these are a CSR matrix of this shape: a product with any other would read outside its memory.

    Raises:
        ValueError: a length, a dtype or an index is wrong.
    """
    if not all(isinstance(part, Tensor) for part in (starts, columns, values)):
        raise ValueError(f"{name}: the indices of the active weights are damaged: not all of its parts are tensors.")
    (rows, width), k = shape, values.numel()
    if any(part.is_meta for part in (starts, columns, values)):
        return  # no content yet; what replaces it is checked
    if (starts.shape, columns.shape, values.shape) != ((rows + 1,), (k,), (k,)):
        fault = f"lengths {tuple(starts.shape)}, {tuple(columns.shape)}, {tuple(values.shape)}"
    elif not starts.dtype == columns.dtype == torch.int32 or not values.is_floating_point():
        fault = f"dtypes {starts.dtype}, {columns.dtype}, {values.dtype}"
    elif starts[0] != 0 or starts[-1] != k or bool((starts.diff() < 0).any()):
        fault = "starts that do not rise from 0 to the number of values"
    elif k and (int(columns.min()) < 0 or int(columns.max()) >= width):
        fault = f"columns from {int(columns.min())} to {int(columns.max())}"
    elif not _rises(starts, columns, width):
        fault = "columns that do not rise within a row"
    else:
        return
    raise ValueError(
        f"{name}: the indices of the active weights are damaged: {fault}; expected those of a ({rows}, {width}) matrix "
        "of floats with int32 indices. The file is corrupt or was written for another model; fetch or save it again."
    )


def _rises(starts: Tensor, columns: Tensor, width: int) -> bool:
    row = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff().long())
    return bool(((row * width + columns).diff() > 0).all())
