"""Prompts and their visual placeholders: checking, dropping and restoring them, and the positions of what is kept.

`prune_inputs` is the whole path as one pure function on a stock model and the inputs a stock processor made. An
attached model walks the same path from the other side: its prompt already holds K placeholders per unit, so the
unpruned prompt is restored to ask the stock model for its positions.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.decoder.rope import rope_index, text_positions
from hf_efficient.representation.vlm.families.family import PIXELS, Family, Unit, VisualInputs

from .families import family_of
from .features import encode
from .grouped import check_grouped
from .kept import KeptUnit
from .wrapped import unwrapped

MODALITIES = ("image", "video")


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
    def of(cls, base: Any, ids: Tensor, mask: Any) -> Prompt:
        """The prompt as a model (without its head) sees it; a mask that is not (B, L) is left out."""
        tokens = {m: getattr(base.config, f"{m}_token_id", None) for m in MODALITIES}
        usable = mask if isinstance(mask, Tensor) and mask.shape == ids.shape else None
        return cls(ids, usable, {m: token for m, token in tokens.items() if token is not None})

    def places(self, modality: str) -> Tensor:
        """(P,) flat positions of the placeholders, row by row."""
        return (self.ids.reshape(-1) == self.tokens[modality]).nonzero().squeeze(1)

    def visual(self) -> Tensor:
        """(B, L) bool: which tokens are placeholders of any modality."""
        return torch.isin(self.ids, torch.tensor(list(self.tokens.values()), device=self.ids.device))

    def question(self, images: VisualInputs, counts: list[int]) -> Tensor:
        """Direction of the text around every unit, (U, 1, D): mean of the unit vectors of its prompt's text tokens.

        `counts` are the placeholders of every unit in this prompt.
        """
        text = torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask.bool()
        for token in self.tokens.values():
            text = text & (self.ids != token)
        words = images.base.get_input_embeddings()(self.ids.masked_fill(~text, 0)).detach().float()
        rows = (F.normalize(words, dim=-1) * text.unsqueeze(-1)).sum(1, keepdim=True)
        return rows[self.rows(images.modality, counts)]

    def rows(self, modality: str, counts: list[int]) -> list[int]:
        """The row of every unit, of units with `counts` placeholders each."""
        starts = torch.tensor([0, *accumulate(counts)][:-1], dtype=torch.long, device=self.ids.device)
        rows: list[int] = (self.places(modality)[starts] // self.ids.shape[1]).tolist()
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
    expected = [config.tokens_to_keep(unit.n) for unit in units]
    places = prompt.places(modality).cpu()
    ends = list(accumulate(expected))
    if (ends[-1] if ends else 0) == len(places):
        starts = torch.tensor([0, *ends][: len(expected)])
        first, last = places[starts], places[torch.tensor(ends) - 1] if ends else places
        if bool(((last - first + 1 == torch.tensor(expected)) & (first // width == last // width)).all()):
            return
        found = "in other runs than the units need"
    else:
        found = f"{len(places)}"
    full = sum(unit.n for unit in units)
    if len(places) == full:
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
        places = prompt.places(modality)
        gaps = [u.indices.diff(prepend=u.indices.new_tensor([-1])) - 1 for u in units]
        before.view(-1)[places] = torch.cat(gaps).to(ids.device)
        tails = [F.pad((u.num_tokens - 1 - u.indices[-1:]), (len(u.indices) - 1, 0)) for u in units]
        after.view(-1)[places] = torch.cat(tails).to(ids.device)
    repeats = 1 + before + after
    total = repeats.sum(1)
    mask = torch.ones_like(ids) if prompt.mask is None else prompt.mask
    missing = total.max() - total
    right = not bool(mask[:, -1].all())

    def spread(row: Tensor) -> Tensor:
        pad = row.new_zeros(len(row), 1)
        values = torch.cat([row, pad] if right else [pad, row], dim=1)
        times = torch.cat([repeats, missing[:, None]] if right else [missing[:, None], repeats], dim=1)
        return values.reshape(-1).repeat_interleave(times.reshape(-1)).view(len(row), -1)

    columns = repeats.cumsum(1) - 1 - after
    columns = columns if right else columns + missing[:, None]
    return FullPrompt(
        spread(ids), spread(mask), None if types is None else spread(types), columns, total - ids.shape[1]
    )


def keeps_positions(family: Family, config: TokenPrunerConfig, proportional_attention: bool = False) -> bool:
    """Whether kept tokens keep the positions of the unpruned prompt.

    On LLaVA-1.5 renumbered positions do better without proportional attention and kept ones with it (RESTORE, ICML
    2026), so "auto" takes those pairs.

    Raises:
        ValueError: the config asks for compact positions in a family that has none.
    """
    if family.mrope and config.positions == "compact":
        raise ValueError(
            f"positions='compact' has no meaning for {family.processor[: -len('Processor')]}: its positions are (time, "
            "height, width) of the image, and are kept. Use positions='auto' or 'original'."
        )
    return family.mrope or config.positions == "original" or (config.positions == "auto" and proportional_attention)


def prune_inputs(model: Any, inputs: Any, config: TokenPrunerConfig) -> dict[str, Any]:
    """Prune prepared inputs: encode, choose, drop the placeholders of what is not kept.

    Args:
        model: a stock model, no pruner attached.
        inputs: what the stock processor returned, as tensors. Not changed.
        config: method, budget and their settings.

    Returns:
        Arguments for one `model(**...)` or `model.generate(**...)`: ids, masks and labels of the pruned prompt, the
        encoded images in `mm_encoder_outputs`, and `position_ids` where positions are kept.

    Raises:
        ValueError: the model's family is not supported, it has a pruner attached, or prompt and images do not fit.
    """
    model = unwrapped(model)
    base, family = model.base_model, family_of(model)
    if hasattr(base, "token_pruner"):
        raise ValueError("The model has a token pruner attached and prunes by itself; detach it, or call it directly.")
    for name in ("proportional_attention", "llm_layers"):
        if value := getattr(config, name):
            raise ValueError(
                f"{name}={value} changes the model, not its inputs alone: use attach_token_pruner(model, processor, "
                f"config), or leave {name} out."
            )
    check_grouped(config, model.config.model_type, family.grouped)
    keeps = keeps_positions(family, config)
    inputs = {k: v for k, v in inputs.items() if v is not None}
    prompt = Prompt.of(base, inputs["input_ids"], inputs.get("attention_mask"))
    whole = TokenPrunerConfig(budget=1.0)
    outputs: dict[str, Any] = {}
    calls = images_of(base, inputs)
    for images in calls:
        check_placeholders(prompt, images.modality, family.units(images), whole)
    for images in calls:

        def question(units: list[Unit], images: VisualInputs = images) -> Tensor:
            return prompt.question(images, [unit.n for unit in units])

        asked = question if config.question_weight else None
        rows = prompt.rows(images.modality, [unit.n for unit in family.units(images)])
        outputs[images.modality] = encode(images.function(), family, config, images, asked, rows)
    kept = {modality: output.kept for modality, output in outputs.items()}
    columns, mask = kept_columns(prompt, kept)
    used = {name for images in calls for name in images.arguments}
    rest = {k: v for k, v in inputs.items() if k not in used}
    pruned = {k: v.gather(1, columns) if _per_token(v, prompt) else v for k, v in rest.items()}
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    pruned["input_ids"] = pruned["input_ids"].masked_fill(mask == 0, pad or 0)
    pruned["attention_mask"] = mask
    if "labels" in pruned:
        pruned["labels"] = pruned["labels"].masked_fill(mask == 0, -100)
    if outputs:
        pruned["mm_encoder_outputs"] = outputs
    if keeps:
        known = {k: v for k, v in inputs.items() if k != "input_ids"}
        known["attention_mask"] = torch.ones_like(prompt.ids) if prompt.mask is None else prompt.mask
        found = rope_index(base, prompt.ids, known) if family.mrope else None
        if found is None:
            positions = model._prepare_position_ids_for_generation(prompt.ids, known)
        else:
            positions = torch.cat([text_positions(known["attention_mask"])[None], found[0]])
        positions = positions.expand(*positions.shape[:-2], *prompt.ids.shape)
        pruned["position_ids"] = positions.gather(-1, columns.expand(*positions.shape[:-1], -1))
        if found is not None:  # the first of the four rows marks the text and must not have gaps
            pruned["position_ids"][0] = text_positions(mask)
            dropped = known["attention_mask"].sum(1, keepdim=True) - mask.sum(1, keepdim=True)
            base.rope_deltas = found[1] + dropped
    return pruned


def _per_token(value: Any, prompt: Prompt) -> bool:
    return isinstance(value, Tensor) and value.shape == prompt.ids.shape


def kept_columns(prompt: Prompt, kept: dict[str, list[KeptUnit]]) -> tuple[Tensor, Tensor]:
    """Columns (B, L') of a full prompt that stay, and their mask (B, L'); rows are padded on the side they were."""
    mask = torch.ones_like(prompt.ids) if prompt.mask is None else prompt.mask
    keep = mask != 0
    for modality, units in kept.items():
        places = prompt.places(modality)
        chosen = torch.zeros(len(places), dtype=torch.bool, device=places.device)
        starts = [0, *accumulate(unit.num_tokens for unit in units)]
        for start, unit in zip(starts, units, strict=False):
            chosen[start + unit.indices.to(places.device)] = True
        keep.view(-1)[places] = chosen
    length = int(keep.sum(1).max())
    if bool(mask[:, -1].all()):  # padding goes to the left, so that every row ends with its last token
        columns = keep.byte().sort(dim=1, stable=True).indices[:, -length:]
    else:
        columns = keep.byte().sort(dim=1, descending=True, stable=True).indices[:, :length]
    return columns, mask.gather(1, columns) * keep.gather(1, columns)
