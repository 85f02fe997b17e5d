"""M-RoPE in vLLM: text numbered as in the unpruned prompt, kept tokens where they stood in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .places import COLUMNS, merged, numbers, time_step


class PrunedPositions:
    """Before a model class of vLLM with positions of time, height and width (see `places`)."""

    token_pruner: Any
    config: Any
    #: of the step that is run next: which of its tokens are visual, and what is added to their positions
    moves: tuple[Tensor, Tensor] | None = None

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions (3, tokens) of a prompt, of placeholders the first of their unit, and what decoding adds."""
        if self.token_pruner is None:
            stock: Any = super()
            found: tuple[Tensor, int] = stock.get_mrope_input_positions(input_tokens, mm_features)
            return found
        positions = torch.zeros(len(input_tokens), dtype=torch.long)
        at = following = largest = 0
        for start, end, (time, rows, columns) in self.runs(input_tokens, mm_features):
            positions[at:start] = torch.arange(start - at) + following
            following += start - at
            positions[start:end] = following
            largest = max(largest, following + time)
            following += max(rows, columns)  # as in transformers, however long a video is
            at = end
        positions[at:] = torch.arange(len(input_tokens) - at) + following
        following += len(input_tokens) - at
        return positions.expand(3, -1).contiguous(), max(largest, following) - len(input_tokens)

    def runs(self, input_tokens: list[int], mm_features: list[Any]) -> list[tuple[int, int, tuple[int, int, int]]]:
        """Start and end of every run of placeholders, and the extent of its picture, video or frame in positions."""
        found = []
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            modality, first = feature.modality, feature.mm_position.offset
            token = getattr(self.config, f"{modality}_token_id")
            places = [i for i in range(first, first + feature.mm_position.length) if input_tokens[i] == token]
            starts = [i for i in places if i - 1 < first or input_tokens[i - 1] != token]
            time, rows, columns = merged(feature.data[f"{modality}_grid_thw"].data.tolist(), self)
            seconds = feature.data.get("second_per_grid_ts")
            step = time_step(self, modality, None if seconds is None else seconds.data)
            deep = int((time // len(starts) - 1) * step) + 1  # frames may stand apart
            for start, following in zip(starts, [*starts[1:], first + feature.mm_position.length], strict=True):
                inside = sum(start <= i < following for i in places)
                found.append((start, start + inside, (deep, rows, columns)))
        return found

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """Takes the columns off the features of this step, and remembers what they say until the model is run."""
        stock: Any = super()
        self.moves = None
        if self.token_pruner is not None and multimodal_embeddings is not None and len(multimodal_embeddings):
            assert is_multimodal is not None  # vLLM says which tokens the features are for
            self.moves = is_multimodal, numbers(torch.cat([x[:, -COLUMNS:] for x in multimodal_embeddings]))
            multimodal_embeddings = [x[:, :-COLUMNS] for x in multimodal_embeddings]
        embedded: Tensor = stock.embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        return embedded

    def forward(self, input_ids: Tensor | None, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Runs the model with the kept tokens where they stood.

        The positions are changed in place: they lie in vLLM's own buffer, whose address captured graphs know, and
        which is filled anew before every step.
        """
        stock: Any = super()
        if self.moves is not None:
            (visual, added), self.moves = self.moves, None
            places = visual.nonzero().squeeze(1).to(positions.device)
            positions[:, places] += added.to(positions.device, positions.dtype)
        return stock.forward(input_ids, positions, *args, **kwargs)


def refused_with_positions(vllm_config: Any) -> dict[str, tuple[bool, str]]:
    """Settings of an engine with which kept tokens would not get their positions -> whether they are on, and why."""
    graphs, parallel = vllm_config.compilation_config.cudagraph_mode, vllm_config.parallel_config
    why = "positions of kept tokens are known in the process and the step that embed them alone"
    return {
        "cudagraph_mode=FULL": (
            graphs is not None and graphs.mixed_mode().name == "FULL",
            "kept tokens get their positions outside graphs"),
        "pipeline_parallel_size": (parallel.pipeline_parallel_size > 1, why),
        "enable_dbo": (bool(parallel.enable_dbo), why),
        "speculative_config": (
            vllm_config.speculative_config is not None, "a drafter does not know the columns with their positions"),
    }  # fmt: skip
