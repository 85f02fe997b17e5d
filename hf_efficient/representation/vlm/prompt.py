"""A prompt and its visual placeholders: finding, checking and restoring them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.representation.config import TokenPrunerConfig

from .families.family import MODALITIES, PIXELS, Family, Unit, VisualInputs
from .kept import KeptUnit


@dataclass
class Prompt:
    """Token ids with visual placeholders.

    Args:
        ids: (B, L) long.
        mask: (B, L), 0 for padding, or None for no padding.
        tokens: modality -> id of its placeholder.
    """

    ids: Tensor
    mask: Tensor | None
    tokens: dict[str, int]

    @classmethod
    def of(cls, base: Any, family: Family, ids: Tensor, mask: Any) -> Prompt:
        """The prompt as a model (without its head) sees it; a mask that is not (B, L) is left out."""
        usable = mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None
        return cls(ids, usable, family.tokens(base.config))

    def placeholder_indices(self, modality: str) -> Tensor:
        """(P,) long: flat indices of the placeholders, row by row."""
        return (self.ids.reshape(-1) == self.tokens[modality]).nonzero().squeeze(1)

    def visual(self) -> Tensor:
        """(B, L) bool: which tokens are placeholders of any modality."""
        return torch.isin(self.ids, torch.tensor(list(self.tokens.values()), device=self.ids.device))

    def question(self, images: VisualInputs, counts: list[int]) -> Tensor:
        """Direction of the text around every unit, (U, 1, D): mean of the unit vectors of its prompt's text tokens.

        `counts` are the placeholders of every unit in this prompt. What stands among those of one unit, at the ends of
        its rows, is no text.
        """
        text = torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask.bool()
        for token in self.tokens.values():
            text = text & (self.ids != token)
        indices, ends = self.placeholder_indices(images.modality).tolist(), list(accumulate(counts))
        for count, end in zip(counts, ends, strict=True):
            first, last = indices[end - count], indices[end - 1]
            if last - first >= count:
                text.view(-1)[first:last] = False
        words = images.base.get_input_embeddings()(self.ids.masked_fill(~text, 0)).detach().float()
        rows = (F.normalize(words, dim=-1) * text.unsqueeze(-1)).sum(1, keepdim=True)
        return rows[self.rows(images.modality, counts)]

    def rows(self, modality: str, counts: list[int]) -> list[int]:
        """The row of every unit, of units with `counts` placeholders each."""
        starts = torch.tensor([0, *accumulate(counts)][:-1], dtype=torch.long, device=self.ids.device)
        rows: list[int] = (self.placeholder_indices(modality)[starts] // self.ids.shape[1]).tolist()
        return rows


def images_of(base: Any, inputs: dict[str, Any]) -> list[VisualInputs]:
    """The calls of the model's feature functions that `inputs` hold pixels for, images before videos."""
    calls = []
    for modality in MODALITIES:
        function = getattr(base, f"get_{modality}_features", None)
        if function is not None and any(inputs.get(name) is not None for name in PIXELS[modality]):
            names = inspect.signature(function).parameters
            calls.append(VisualInputs(base, modality, {k: inputs[k] for k in names if inputs.get(k) is not None}))
    return calls


def check_placeholders(prompt: Prompt, modality: str, units: list[Unit], config: TokenPrunerConfig) -> None:
    """Raise unless the prompt holds one unbroken run of K placeholders for every unit, in order.

    Raises:
        ValueError: what was found, what was expected, and the likely fix.
    """
    width = prompt.ids.shape[1]
    expected = [unit.budget(config) for unit in units]
    indices = prompt.placeholder_indices(modality).cpu()
    ends = list(accumulate(expected))
    if (ends[-1] if ends else 0) == len(indices):
        starts = torch.tensor([0, *ends][: len(expected)])
        first, last = indices[starts], indices[torch.tensor(ends) - 1] if ends else indices
        rows = torch.tensor([not unit.one_run and k == unit.n for unit, k in zip(units, expected, strict=True)])
        unbroken = (last - first + 1 == torch.tensor(expected)) | rows
        if bool((unbroken & (first // width == last // width)).all()):
            return
        found = "in other runs than the units need"
    else:
        found = f"{len(indices)}"
    full = sum(unit.n for unit in units)
    if len(indices) == full:
        fix = (
            "The prompt was made by a processor without the pruner: attach both with "
            "attach_token_pruner(model, processor, config), or detach the model."
        )
    else:
        fix = (
            "Make the prompt with the processor that was attached together with this model, with the same config; "
            "prompts written by hand need one unbroken run of placeholders per unit."
        )
    raise ValueError(
        f"Wrong number of {modality} placeholders: found {found}, expected {sum(expected)} in {len(units)} unit(s) of "
        f"{_some(expected)} tokens, kept of {_some([unit.n for unit in units])} by budget={config.budget!r}. {fix}"
    )


def _some(counts: list[int]) -> str:
    return ", ".join(map(str, counts[:4])) + (", ..." if len(counts) > 4 else "")


@dataclass
class FullPrompt:
    """An unpruned prompt restored from a pruned one.

    Args:
        ids: (B, F) long.
        mask: (B, F).
        types: (B, F) modality of every token, or None.
        columns: (B, L) long, where the tokens of the pruned prompt stand in it.
        dropped: (B,) long, tokens of every row that the pruned prompt has not.
    """

    ids: Tensor
    mask: Tensor
    types: Tensor | None
    columns: Tensor
    dropped: Tensor

    def gather(self, positions: Tensor) -> Tensor:
        """Positions (..., B or 1, F) of the full prompt -> (..., B, L) of the pruned one."""
        positions = positions.expand(*positions.shape[:-2], *self.ids.shape)
        return positions.gather(-1, self.columns.expand(*positions.shape[:-1], -1))


def restore(prompt: Prompt, kept: dict[str, list[KeptUnit]], types: Tensor | None = None) -> FullPrompt:
    """The prompt as it was before its placeholders were pruned.

    Every token is repeated as often as it stands for tokens of the full prompt: a placeholder for itself and for what
    was dropped between it and the one before (the last of a unit also for what was dropped after it). Rows are padded
    on the side they are padded on already.
    """
    ids, before, after = prompt.ids, torch.zeros_like(prompt.ids), torch.zeros_like(prompt.ids)
    for modality, units in kept.items():
        if not units:
            continue
        indices = prompt.placeholder_indices(modality)
        gaps = [u.indices.diff(prepend=u.indices.new_tensor([-1])) - 1 for u in units]
        before.view(-1)[indices] = torch.cat(gaps).to(ids.device)
        tails = [F.pad((u.num_tokens - 1 - u.indices[-1:]), (len(u.indices) - 1, 0)) for u in units]
        after.view(-1)[indices] = torch.cat(tails).to(ids.device)
    repeats = 1 + before + after
    total = repeats.sum(1)
    mask = torch.ones_like(ids) if prompt.mask is None else prompt.mask
    missing = total.max() - total
    right = not bool(mask[:, -1].all())

    def with_gaps(row: Tensor) -> Tensor:
        pad = row.new_zeros(len(row), 1)
        values = torch.cat([row, pad] if right else [pad, row], dim=1)
        times = torch.cat([repeats, missing[:, None]] if right else [missing[:, None], repeats], dim=1)
        return values.reshape(-1).repeat_interleave(times.reshape(-1)).view(len(row), -1)

    columns = repeats.cumsum(1) - 1 - after
    columns = columns if right else columns + missing[:, None]
    return FullPrompt(
        with_gaps(ids), with_gaps(mask), None if types is None else with_gaps(types), columns, total - ids.shape[1]
    )
