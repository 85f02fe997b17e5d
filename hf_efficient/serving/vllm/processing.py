"""The side of vLLM that writes prompts: K placeholders per unit where its own processor writes N.

Prompt, cache blocks, scheduling, encoder cache, prefix caching and `usage.prompt_tokens` all count placeholders, so
what is written here is what a picture costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_efficient.compat.vllm import are_embeddings, batched, details, with_content
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.families.family import Family

from .budgets import MODALITIES, NAME, as_rows, check_fewer, field, with_budget, without_budget
from .families import ARCHITECTURES, Served
from .settings import fingerprint, for_engine, served_config


def pruner_of(model_config: Any) -> tuple[TokenPrunerConfig, Served] | None:
    """The config that a model is served with and how its family is served; None where it is served as it is.

    Raises:
        ValueError: the config cannot be served.
    """
    config = served_config(model_config)
    served = next((ARCHITECTURES[a] for a in model_config.architectures if a in ARCHITECTURES), None)
    if config is None or served is None:  # those with a config alone are refused elsewhere
        return None
    return for_engine(config, served.family, model_config.hf_config.model_type), served


def check_pixels(processor: Any) -> None:
    """Raise where videos would be brought to another scale than their own, by which other tokens are chosen.

    vLLM leaves rescaling and normalizing to the model, which takes the numbers of the image processor for videos too.

    Args:
        processor: transformers' processor of the model.

    Raises:
        ValueError: the video processor has other numbers.
    """
    for name in ("image_mean", "image_std", "rescale_factor"):
        given = [getattr(one, name, None) for one in (processor.image_processor, processor.video_processor)]
        if given[0] != given[1]:
            raise ValueError(
                f"{name} of this model is {given[0]} for pictures and {given[1]} for videos, and vLLM would take the "
                "first for both. Start it with mm_device_do_normalize=False (--no-mm-device-do-normalize)."
            )


class PrunedInfo:
    """Before a class of vLLM's `BaseProcessingInfo`: what a prompt may have, and how many tokens of it at most."""

    ctx: Any

    def validate_num_items(self, modality: str, num_items: int) -> None:
        stock: Any = super()
        stock.validate_num_items(modality, num_items)
        on_device = self.ctx.get_mm_config().mm_device_do_normalize
        if modality == "video" and num_items and on_device and pruner_of(self.ctx.model_config) is not None:
            check_pixels(stock.get_hf_processor())

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int] | None:
        stock: Any = super()
        most: Mapping[str, int] | None = stock.get_mm_max_tokens_per_item(seq_len, mm_counts)
        pruner = pruner_of(self.ctx.model_config)
        if pruner is None or most is None:  # None: vLLM counts the placeholders of the largest picture
            return most
        config, served = pruner
        return {modality: served.most(self, config, modality, n) for modality, n in most.items()}


class PrunedProcessing:
    """Before a class of vLLM's `BaseMultiModalProcessor`."""

    info: Any

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        stock: Any = super()
        pruner = pruner_of(self.info.ctx.model_config)
        if NAME in hf_kwargs and pruner is None:
            raise ValueError(
                f"{NAME}={hf_kwargs[NAME]!r}, but this model is served without a token pruner. Leave it out."
            )
        found = stock._apply_hf_processor_main(mm_items, without_budget(hf_kwargs))
        if NAME in hf_kwargs and pruner is not None:
            budget = with_budget(pruner[0], hf_kwargs).budget
            counts = mm_items.get_all_counts()
            found.update({field(m): as_rows(budget, counts[m]) for m in MODALITIES if counts.get(m)})
        return found

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        stock: Any = super()
        fields = stock._get_mm_fields_config(hf_inputs, without_budget(hf_processor_mm_kwargs))
        return {**fields, **{field(m): batched(m) for m in MODALITIES if field(m) in hf_inputs}}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        stock: Any = super()
        plain = without_budget(hf_processor_mm_kwargs)
        updates: Sequence[Any] = stock._get_prompt_updates(mm_items, plain, out_mm_kwargs)
        pruner = pruner_of(self.info.ctx.model_config)
        if pruner is None:
            return updates
        config, served = pruner
        asked, processor = with_budget(config, hf_processor_mm_kwargs), self.info.get_hf_processor(**plain)

        def kept(n: int) -> int:
            return check_fewer(asked, config, n)

        return [
            update if are_embeddings(mm_items.get(update.modality)) else fewer(update, kept, served.family, processor)
            for update in updates
        ]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # caches that engines share (disaggregated serving) must not mix up what different pruners made of a picture
        stock: Any = super()
        hashes = stock._get_mm_hashes(inputs)
        pruner = pruner_of(self.info.ctx.model_config)
        if pruner is None:
            return hashes
        mark = fingerprint(pruner[0])
        return {modality: [f"{one}-{mark}" for one in many] for modality, many in hashes.items()}


def fewer(update: Any, kept: Callable[[int], int], family: Family, processor: Any) -> Any:
    """A prompt update that writes as many placeholders per unit as are kept.

    Args:
        update: vLLM's `PromptReplacement` or `PromptInsertion`.
        kept: how many are kept of a unit of so many.
        family: how a run of placeholders divides into units.
        processor: transformers' processor of the model.
    """

    def content(item: int) -> Any:
        stock = update.resolve(item).content
        places = [True] * len(stock.full) if stock.is_embed is None else stock.is_embed(stock.full).tolist()
        ids, still = shrunk(stock.full, places, lambda run: kept_of(run, item))
        return details(ids, None if stock.is_embed is None else still)

    def kept_of(run: int, item: int) -> int:
        return sum(map(kept, family.run_units(processor, run, update.modality, None, item)))

    return with_content(update, content)


def shrunk(ids: list[int], places: list[bool], kept_of: Any) -> tuple[list[int], list[bool]]:
    """Token ids with shorter runs of placeholders, and which of them are placeholders.

    Args:
        ids: of all tokens that stand for one picture or video.
        places: which of them are placeholders.
        kept_of: the number of placeholders that stays of an unbroken run of so many.
    """
    made: list[int] = []
    mask: list[bool] = []
    at = 0
    while at < len(ids):
        end = at
        while end < len(ids) and places[end] == places[at]:
            end += 1
        stays = kept_of(end - at) if places[at] else end - at
        made += ids[at : at + stays]
        mask += [places[at]] * stays
        at = end
    return made, mask
