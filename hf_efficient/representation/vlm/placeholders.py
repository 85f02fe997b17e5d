"""The processor's side of an attached pair: K placeholders where the stock processor writes N."""

from __future__ import annotations

import math
import re
import weakref
from typing import Any

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.families.family import MODALITIES, Family, check_modality

from .attached import Saved, stock_class_of
from .copies import mark_image


class PlaceholderPruner:
    """State of an attached processor, its `processor.token_pruner`."""

    def __init__(self, config: TokenPrunerConfig, family: Family, model: Any) -> None:
        self.config = config
        self.family = family
        self.partner: weakref.ref[Any] | None = weakref.ref(model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.method}, budget={self.config.budget!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "partner": None}  # a copy, or one in a worker process, has no model to compare with

    def check(self) -> None:
        """Raise if the model attached together with the processor has gone another way since."""
        model = None if self.partner is None else self.partner()
        if model is None:
            return
        other = getattr(model.base_model, "token_pruner", None)
        if other is None:
            raise ValueError(
                "The processor has a token pruner, but the model it was attached with has none any more. Attach both "
                "with attach_token_pruner(model, processor, config), or detach both with "
                "detach_token_pruner(model, processor)."
            )
        if other.config != self.config:
            raise ValueError(
                f"Processor and model prune differently: {self.config} against {other.config}. Attach both together "
                "with attach_token_pruner(model, processor, config)."
            )

    def shrink(
        self, processor: Any, text: str, modality: str, inputs: Any, index: int, settings: dict[str, Any]
    ) -> str:
        """The text of one image or video with K placeholders per unit in place of N; `settings`: of the call."""
        check_modality(self.family, modality, type(processor).__name__)
        token = self.family.placeholder(processor, modality)
        tolerance, encoded = self.config.merge_copies, math.inf
        if tolerance is not None and modality == "image":
            encoded = mark_image(self.family, processor, inputs, index, tolerance, settings)

        def fewer(run: re.Match[str]) -> str:
            length = len(run.group()) // len(token)
            sizes = self.family.run_units(processor, length, modality, inputs, index)
            return token * sum(int(min(self.config.tokens_to_keep(size), encoded)) for size in sizes)

        if modality == "image" and not self.family.one_run:
            text = self.in_one_run(text, token)
        return re.sub(f"(?:{re.escape(token)})+", fewer, text)

    def in_one_run(self, text: str, token: str) -> str:
        """The text of one image without the line breaks between its rows, unless all of it is kept."""
        count = text.count(token)
        if self.config.tokens_to_keep(count) == count:
            return text
        return text[: text.index(token)] + token * count + text[text.rindex(token) + len(token) :]


class PrunedProcessor(Saved):
    """A processor that emits K placeholders per unit."""

    token_pruner: PlaceholderPruner

    def _pruner_config(self) -> TokenPrunerConfig:
        return self.token_pruner.config

    def __repr__(self) -> str:
        return f"{super().__repr__()}\ntoken_pruner={vars(self).get('token_pruner')!r}"

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        stock: Any = super()
        self.token_pruner.check()
        text = stock.replace_image_token(image_inputs, image_idx, **kwargs)
        return self.token_pruner.shrink(self, text, "image", image_inputs, image_idx, kwargs)

    def replace_video_token(self, video_inputs: Any, video_idx: int, **kwargs: Any) -> str:
        stock: Any = super()
        self.token_pruner.check()
        text = stock.replace_video_token(video_inputs, video_idx, **kwargs)
        return self.token_pruner.shrink(self, text, "video", video_inputs, video_idx, kwargs)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.token_pruner.config.merge_copies is not None and image_sizes:
            raise ValueError(
                "With merge_copies an image has as many tokens as it has cells that differ, which its size does not "
                "tell. Process the image itself, or set merge_copies=None."
            )
        bare: Any = object.__new__(stock_class_of(self))  # some count what replace_image_token writes
        vars(bare).update(vars(self))
        data = bare._get_num_multimodal_tokens(image_sizes, *args, **kwargs)
        sizes = {"image": image_sizes, "video": args[0] if args else kwargs.get("video_sizes")}
        for modality in MODALITIES:
            counts = getattr(data, f"num_{modality}_tokens", None)
            if not counts:
                continue
            patches = data.num_image_patches if modality == "image" else [1] * len(counts)
            pruned = []
            for tokens, patch, size in zip(counts, patches, sizes[modality], strict=True):
                family = self.token_pruner.family
                units = family.counted_units(self, modality, tokens, patch, size)
                dropped = sum(units) - sum(map(self.token_pruner.config.tokens_to_keep, units))
                pruned.append(tokens - dropped - (family.row_ends(self, modality, size) if dropped else 0))
            setattr(data, f"num_{modality}_tokens", pruned)
        return data
