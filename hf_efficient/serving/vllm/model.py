"""The side of vLLM that runs the model: K features where its encoder makes N."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_efficient.compat.vllm import untested
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.families import towers
from hf_efficient.representation.vlm.features import choose
from hf_efficient.representation.vlm.kept import KeptUnit

from .budgets import NAME, taken
from .encoder import AttentionInputs
from .families import Served
from .positions import refused_with_positions
from .processing import pruner_of
from .sizes import TokenSizes, refused_with_sizes, with_sizes

logger = logging.getLogger("vllm.hf_efficient")


class Pruner:
    """What a served model does with the output of its encoder.

    Args:
        model: of vLLM.
        config: as the engine runs it.
        served: how the model's family is served.

    Attributes:
        source: the attention that importance is read from, None where features tell.
    """

    def __init__(self, model: Any, config: TokenPrunerConfig, served: Served) -> None:
        self.config, self.served = config, served
        self.source: str | None = None
        if reads_attention(config, served):
            offered = served.offers(model)
            if not offered:
                raise ValueError(
                    f"importance={config.importance!r} needs attention, which cannot be read: {served.fault}. Set "
                    "importance='distinct'."
                )
            self.source = towers.choose_source(config.importance_source, offered, served.fault, type(model).__name__)
        logger.info("Visual tokens: %s, budget %r, importance %s.", config.method, config.budget, self.source or "none "
                    "of attention")  # fmt: skip

    def embed(self, model: Any, stock: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
        """Kept features (K, D) of every picture or video of a call, with what the model has to know of their places.

        Args:
            model: of vLLM.
            stock: its `embed_multimodal`.
            arguments: of the call; of pictures or videos, of one or many requests.
        """
        arguments, asked = taken(arguments)
        modality = "video" if any(name.startswith(("pixel_values_videos", "video_")) for name in arguments) else "image"
        if any(name.endswith("_embeds") for name in arguments):
            whole = self.served.placed(model, modality, arguments, list(stock(**arguments)), None)
            return with_sizes(whole, None) if self.config.wants_sizes else whole
        images = self.served.images(model, modality, arguments)
        layer = None if self.source is None else self.served.attention(model)
        encoded: list[Tensor] = []
        with contextlib.ExitStack() as stack:
            watch = None if layer is None else stack.enter_context(
                AttentionInputs(layer, str(self.source)))  # fmt: skip
            if self.config.features == "encoder":
                hook = self.served.projector(model).register_forward_pre_hook(lambda _, args: encoded.append(args[0]))
                stack.callback(hook.remove)
            features = [x.reshape(-1, x.shape[-1]) for x in stock(**arguments)]
        units = self.served.units(images, features)
        joint = torch.cat(features)
        if sum(unit.n for unit in units) != len(joint):
            raise RuntimeError(
                f"{type(model).__name__} of vLLM made {len(joint)} features where {sum(unit.n for unit in units)} were "
                "expected: this release cuts pictures in another way. Serve the model as it is, or with transformers."
            )
        scores = None
        if watch is not None:
            scores = self.served.scores(images, watch.importance(self.served.lengths(images)), units)
        counts = self.served.units_of_items(units, [len(x) for x in features])
        budgets = [self.config.budget] * len(counts) if asked is None else asked
        configs = [replace(self.config, budget=one) for one, n in zip(budgets, counts, strict=True) for _ in range(n)]
        ks = [unit.budget(one) for unit, one in zip(units, configs, strict=True)]
        sizes = [unit.n for unit in units]
        levels, width = list(joint.split(sizes)), self.served.width(model)
        compared = list(torch.cat(encoded).flatten(0, 1).split(sizes)) if encoded else [x[:, :width] for x in levels]
        kept = choose(compared, units, scores, None, self.config, modality, ks)
        made = joined([self.tokens(x, unit, width) for x, unit in zip(levels, kept, strict=True)], counts)
        placed = self.served.placed(model, modality, arguments, made, joined_indices(kept, counts))
        if not self.config.wants_sizes:
            return placed
        masses = [torch.ones(len(unit.indices)) if unit.mass is None else unit.mass for unit in kept]
        return with_sizes(placed, joined(masses, counts))

    def tokens(self, levels: Tensor, unit: KeptUnit, width: int) -> Tensor:
        """Kept tokens of a unit of all levels (N, levels x width), each by itself; a generator refines the first."""
        first, *rest = levels.split(width, dim=1)
        made = [unit.tokens(first, self.config.generator), *(unit.tokens(level) for level in rest)]
        return torch.cat(made, 1).to(levels.dtype)


def joined(tokens: list[Tensor], counts: list[int]) -> list[Tensor]:
    """Tokens of units, joined to those of pictures of so many units each."""
    parts = iter(tokens)
    return [torch.cat([next(parts) for _ in range(count)]) for count in counts]


def joined_indices(kept: list[KeptUnit], counts: list[int]) -> list[Tensor]:
    """Places of the kept tokens of every picture among all of it, rising: (K,) long each."""
    parts, found = iter(kept), []
    for count in counts:
        at, places = 0, []
        for unit in (next(parts) for _ in range(count)):
            places.append(unit.indices + at)
            at += unit.num_tokens
        found.append(torch.cat(places))
    return found


class PrunedModel:
    """Before a model class of vLLM. Stock where no pruner is configured.

    Attributes:
        token_pruner: what is done with features, None where the model is served as it is.
        token_sizes: what tokens of the step that is run next stand for, None where attention counts all alike.
    """

    served: ClassVar[Served]
    token_sizes: TokenSizes | None = None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        found = pruner_of(vllm_config.model_config)
        if found is not None:
            check_engine(vllm_config, found[0], found[1])
        stock: Any = super()
        stock.__init__(vllm_config=vllm_config, prefix=prefix)
        self.token_pruner = None if found is None else Pruner(self, *found)
        if found is not None and found[0].wants_sizes:
            self.token_sizes = TokenSizes(self, vllm_config)
        note = untested()
        if found is not None and note is not None:
            logger.warning(note)

    def embed_multimodal(self, **kwargs: object) -> Any:
        stock: Any = super()
        if self.token_pruner is None:
            return stock.embed_multimodal(**kwargs)
        return self.token_pruner.embed(self, stock.embed_multimodal, kwargs)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        stock: Any = super()
        if self.token_sizes is not None:
            given = () if multimodal_embeddings is None else multimodal_embeddings
            multimodal_embeddings = self.token_sizes.take(given, is_multimodal)
        embedded: Tensor = stock.embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        return embedded

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        stock: Any = super()
        return stock.load_weights(old_names(weights) if self.served.old_tower(self) else weights)


def reads_attention(config: TokenPrunerConfig, served: Served) -> bool:
    """Whether a choice depends on attention of the encoder."""
    row = REPRESENTATION.row(config.method)
    return config.importance_source in ("auto", *served.SOURCES) and (
        "importance" in row.needs or config.min_group_share > 0
    )


def old_names(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names of vLLM's CLIP and SigLIP, whose `vision_model.` newer transformers does not write."""
    for name, weight in weights:
        yield re.sub(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)", r"\1vision_model.", name), weight


def check_engine(vllm_config: Any, config: TokenPrunerConfig, served: Served) -> None:
    """Raise where settings of the engine leave out what the plug-in does.

    Args:
        vllm_config: all settings of the engine.
        config: as the engine runs it.
        served: how the model's family is served.
    """
    compilation, attention = vllm_config.compilation_config, reads_attention(config, served)
    pictures = vllm_config.model_config.multimodal_config
    parallel = pictures.mm_encoder_tp_mode == "data"
    refused = {
        "cudagraph_mm_encoder": (
            compilation.cudagraph_mm_encoder, "graphs of the encoder pass by the place where tokens are chosen"),
        "compile_mm_encoder": (
            compilation.compile_mm_encoder and attention,
            "attention cannot be read inside a compiled encoder; importance='distinct' needs none"),
        "mm_encoder_tp_mode='data'": (
            parallel and attention,
            "each rank sees the attention of its own pictures alone; importance='distinct' needs none"),
        f"mm_processor_kwargs={pictures.mm_processor_kwargs}": (
            NAME in (pictures.mm_processor_kwargs or {}), "the engine's own budget is that of the pruner's config"),
        **(refused_with_positions(vllm_config) if served.family.mrope else {}),
        **(refused_with_sizes(vllm_config) if config.wants_sizes else {}),
    }  # fmt: skip
    for name, (asked, why) in refused.items():
        if asked:
            raise ValueError(f"{name} cannot be used with a token pruner: {why}. Switch it off.")
