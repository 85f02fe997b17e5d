"""The whole path as one pure function on a stock model and the inputs that a stock processor made: `prune_inputs`.

An attached model walks the same path from the other side: its prompt already holds K placeholders per unit, so the
unpruned prompt is restored to ask the stock model for its positions (`.prompt`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.decoder.rope import rope_index, text_positions
from hf_efficient.wrapped import unwrapped

from .copies import check_copies, marked
from .families.counting import encoding_once
from .families.family import PIXELS, Family, Unit, VisualInputs, check_apart, drop_masks
from .features import encode
from .grouped import check_grouped
from .kept import KeptUnit
from .needs import check_transformers
from .prompt import Prompt, check_placeholders, images_of
from .proof import family_for


def keeps_positions(family: Family, config: TokenPrunerConfig, proportional_attention: bool = False) -> bool:
    """Whether kept tokens keep the positions of the unpruned prompt.

    On LLaVA-1.5 renumbered positions do better without proportional attention and kept ones with it (RESTORE, ICML
    2026), so "auto" takes those pairs.

    Raises:
        ValueError: the config asks for compact positions in a family that has none, or for original ones where a
            pruned prompt cannot tell them.
    """
    if family.mrope and config.positions == "compact":
        raise ValueError(
            f"positions='compact' has no meaning for {family.processor[: -len('Processor')]}: its positions are (time, "
            "height, width) of the image, and are kept. Use positions='auto' or 'original'."
        )
    if not family.one_run and config.positions == "original":
        raise ValueError(
            f"positions='original' has no meaning for {family.processor[: -len('Processor')]}: it ends rows of an "
            "image with tokens of the text, which a pruned prompt has not. Use positions='auto' or 'compact'."
        )
    if not family.one_run:
        return False
    return family.mrope or config.positions == "original" or (config.positions == "auto" and proportional_attention)


def check_config(config: TokenPrunerConfig, kind: str, family: Family) -> None:
    """Raise where settings can never act in a family; `kind`: the model's `model_type`."""
    check_grouped(config, kind, family.grouped)
    check_copies(config, kind, family)
    if config.features not in family.features:
        raise ValueError(
            f"features={config.features!r} needs a projector that keeps tokens and their order, as that of 'llava' and "
            f"'paligemma' does; {kind!r} folds or rearranges them. Set features='projected'."
        )


@encoding_once()
def prune_inputs(
    model: Any,
    inputs: Any,
    config: TokenPrunerConfig | dict[str, Any] | str | os.PathLike[str],
    processor: Any = None,
) -> dict[str, Any]:
    """Prune prepared inputs: encode, choose, drop the placeholders of what is not kept.

    Args:
        model: a stock model, no pruner attached.
        inputs: what the stock processor returned, as tensors. Not changed.
        config: a `TokenPrunerConfig`, its values as a dict, or a folder or Hub id it was saved to.
        processor: the stock processor, needed for near copies (`merge_copies` above 0), which are measured by what it
            divides pixels by, and for a model without a file of its own that was not attached before.

    Returns:
        Arguments for one `model(**...)` or `model.generate(**...)`: ids, masks and labels of the pruned prompt, the
        encoded images in `mm_encoder_outputs`, and `position_ids` where positions are kept.

    Raises:
        ValueError: the model's family is not supported, or it has a pruner attached; prompt and images do not fit; or
            near copies are to be merged without a processor. ImportError: transformers is older than 5.23.
    """
    check_transformers("prune_inputs")
    config, model = TokenPrunerConfig.of(config), unwrapped(model)
    _check_bare_of_pruner(model.base_model)
    clips = any(inputs.get(name) is not None for name in PIXELS["video"])
    base, family = model.base_model, family_for(model, processor, again=clips)
    _check_inputs_alone(config, model.config.model_type, family)
    keeps = keeps_positions(family, config)
    config = replace(config, proportional_attention=False)  # no call of the model will count sizes
    inputs = {k: v for k, v in inputs.items() if v is not None}
    drop_masks(family, inputs)
    prompt = Prompt.of(base, family, inputs["input_ids"], inputs.get("attention_mask"))
    outputs: dict[str, Any] = {}
    calls = whole_calls(base, family, prompt, inputs)
    for images in calls:

        def question(units: list[Unit], images: VisualInputs = images) -> Tensor:
            return prompt.question(images, [unit.n for unit in units])

        asked = question if config.question_weight else None
        rows = prompt.rows(images.modality, [unit.n for unit in family.units(images)])
        outputs[images.modality] = encode(
            images.function(), family, config, marked(family, images, config, processor), asked, rows
        )
    kept = {modality: output.kept for modality, output in outputs.items()}
    columns, mask = kept_columns(prompt, kept)
    used = {name for images in calls for name in images.arguments}
    pruned = {k: v.gather(1, columns) if _per_token(v, prompt) else v for k, v in inputs.items() if k not in used}
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    pruned["input_ids"] = pruned["input_ids"].masked_fill(mask == 0, pad or 0)
    pruned["attention_mask"] = mask
    if "labels" in pruned:
        pruned["labels"] = pruned["labels"].masked_fill(mask == 0, -100)
    if outputs:
        pruned["mm_encoder_outputs"] = outputs
    if keeps:
        pruned["position_ids"] = _kept_positions(model, family, prompt, inputs, columns, mask)
    return pruned


def _check_bare_of_pruner(base: Any) -> None:
    """Raise if a pruner is attached to the (base) model."""
    if hasattr(base, "token_pruner"):
        raise ValueError("The model has a token pruner attached and prunes by itself; detach it, or call it directly.")


def whole_calls(base: Any, family: Family, prompt: Prompt, inputs: dict[str, Any]) -> list[VisualInputs]:
    """The calls that `inputs` hold pixels for; raises unless the prompt can have them all, and has every token."""
    calls = images_of(base, inputs)
    check_apart(family, calls)
    for images in calls:
        check_placeholders(prompt, images.modality, family.units(images), TokenPrunerConfig(budget=1.0))
    return calls


def _check_inputs_alone(config: TokenPrunerConfig, kind: str, family: Family) -> None:
    """Raise on settings that need an attached pair, or another family than that of `model_type` kind."""
    for name in ("proportional_attention", "llm_layers"):
        if value := getattr(config, name):
            raise ValueError(
                f"{name}={value} changes the model, not its inputs alone: use attach_token_pruner(model, processor, "
                f"config), or leave {name} out."
            )
    check_config(config, kind, family)


def _kept_positions(
    model: Any, family: Family, prompt: Prompt, inputs: dict[str, Any], columns: Tensor, mask: Tensor
) -> Tensor:
    """Position ids of the kept columns, as in the unpruned prompt: ([4,] B, K). Sets `rope_deltas` of M-RoPE."""
    base = model.base_model
    known = {k: v for k, v in inputs.items() if k != "input_ids"}
    known["attention_mask"] = torch.ones_like(prompt.ids) if prompt.mask is None else prompt.mask
    found = rope_index(base, prompt.ids, known) if family.mrope else None
    if found is None:
        positions = model._prepare_position_ids_for_generation(prompt.ids, known)
    else:
        positions = torch.cat([text_positions(known["attention_mask"])[None], found[0]])
    positions = positions.expand(*positions.shape[:-2], *prompt.ids.shape)
    kept: Tensor = positions.gather(-1, columns.expand(*positions.shape[:-1], -1))
    if found is not None:  # the first of the four rows marks the text and must not have gaps
        kept[0] = text_positions(mask)
        dropped = known["attention_mask"].sum(1, keepdim=True) - mask.sum(1, keepdim=True)
        base.rope_deltas = found[1] + dropped
    return kept


def _per_token(value: Any, prompt: Prompt) -> bool:
    return isinstance(value, Tensor) and value.shape == prompt.ids.shape


def kept_columns(prompt: Prompt, kept: dict[str, list[KeptUnit]]) -> tuple[Tensor, Tensor]:
    """Columns (B, L') of a full prompt that stay, and their mask (B, L'); rows are padded on the side they were.

    What the prompt says between the placeholders of a unit, at the ends of its rows, goes where tokens of it go.
    """
    mask = torch.ones_like(prompt.ids) if prompt.mask is None else prompt.mask
    keep = mask != 0
    for modality, units in kept.items():
        indices = prompt.placeholder_indices(modality)
        chosen = torch.zeros(len(indices), dtype=torch.bool, device=indices.device)
        starts = [0, *accumulate(unit.num_tokens for unit in units)]
        for start, unit in zip(starts, units, strict=False):
            chosen[start + unit.indices.to(indices.device)] = True
            if len(unit.indices) < unit.num_tokens:
                keep.view(-1)[indices[start] : indices[start + unit.num_tokens - 1]] = False
        keep.view(-1)[indices] = chosen
    length = int(keep.sum(1).max())
    if bool(mask[:, -1].all()):  # padding goes to the left, so that every row ends with its last token
        columns = keep.byte().sort(dim=1, stable=True).indices[:, -length:]
    else:
        columns = keep.byte().sort(dim=1, descending=True, stable=True).indices[:, :length]
    return columns, mask.gather(1, columns) * keep.gather(1, columns)
