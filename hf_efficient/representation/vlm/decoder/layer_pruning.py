"""Pruning inside the language model: after some layers, visual tokens are dropped, by a rule of `layer_choice`.

By attention of the last word after one layer, early, it is FastV (Chen et al., ECCV 2024); after several, each keeping
a share, PyramidDrop (Xing et al., CVPR 2025). Tokens are really dropped: later layers run on shorter sequences and hold
fewer keys and values. Positions stay what they were, since queries and keys are rotated by what the model passes to its
layers. The choice is made once, when the prompt is read, and holds for what is generated after it.

Public FastV code keeps the attention map of a whole layer for its scores; here one row of it is computed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.compat.transformers import cache_of
from hf_efficient.shards import heads_split_over

from .layer_choice import attention_paid, drawn, landmarks, likeness_of_values

Keeps = Callable[[int], int]


class Drops:
    """What the layers have dropped of one prompt, or will drop.

    Attributes:
        visual: (B, L) bool, the prompt's visual tokens; None where it has none, and nothing is dropped.
        kept: layer -> columns (B, M) of the prompt that are left after it, and which of them count.
    """

    def __init__(self, visual: Tensor | None, mask: Tensor | None, rule: str = "attention") -> None:
        """`visual` as above, `mask` (B, L) the prompt's padding, `rule` as `TokenPrunerConfig.llm_choice`."""
        self.visual, self.rule = visual, rule
        self.real = None if mask is None else mask != 0
        self.last: Tensor | None = None
        if visual is not None:
            indices = torch.arange(visual.shape[1], device=visual.device)
            last = indices if mask is None else indices.masked_fill(mask == 0, -1)
            self.last = last.expand(visual.shape).amax(1)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.scores: Tensor | None = None
        self.total = 0

    @torch.no_grad()
    def watch(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> None:
        """Scores of the tokens in the layer before a stage that is to come, by what its attention is called with."""
        if self.visual is None or module.layer_idx + 1 in self.kept:
            return
        if query.shape[2] < self.columns(module.layer_idx, self.visual.shape[1])[0].shape[1]:
            return  # a part of a prompt, which the next layer refuses
        assert self.last is not None
        rows = len(query) // len(self.visual)
        self.visual, self.last = self.visual.repeat_interleave(rows, 0), self.last.repeat_interleave(rows, 0)
        at = self.last.unsqueeze(1)
        if self.kept:  # where it stands among the columns that are left
            at = (self.columns(module.layer_idx, self.visual.shape[1])[0] == at).byte().argmax(1, keepdim=True)
        over = heads_split_over(module)  # all processes must drop the same, and by all heads
        if self.rule == "ivc":
            columns, counts = self.columns(module.layer_idx, self.visual.shape[1])
            real = counts if self.real is None else counts & self.real.gather(1, columns)
            self.scores = likeness_of_values(value, real, self.visual.gather(1, columns), at, over)
        else:
            self.scores = attention_paid(query, key, mask, at, scaling, over)

    def choose(self, stage: int, keeps: Keeps, rotary: tuple[Tensor, ...]) -> None:
        """Keep the visual tokens with the largest scores; every row drops what its own budget says.

        `rotary`: cosines and sines of all positions.
        """
        assert self.visual is not None
        length = self.visual.shape[1]
        columns, counts = self.columns(stage - 1, length)
        alive = torch.zeros_like(self.visual).scatter(1, columns, counts)
        candidates = self.visual & alive
        quota = torch.tensor([keeps(n) if n else 0 for n in candidates.sum(1).tolist()], device=columns.device)
        if self.rule == "random":
            scores = drawn(self.visual)
        else:
            assert self.scores is not None
            scores = torch.zeros(self.visual.shape, device=columns.device)
            scores = scores.scatter(1, columns, self.scores[:, : columns.shape[1]])
        if self.rule == "ivc":
            scores = scores + 2 * landmarks(rotary, candidates, quota)
        scores = scores.masked_fill(~candidates, -1)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        keep = alive & (~self.visual | (rank < quota.unsqueeze(1)))
        most = int(keep.sum(1).max())
        columns = keep.byte().sort(dim=1, stable=True).indices[:, -most:]  # rows that keep fewer are filled up in front
        self.kept[stage] = columns, keep.gather(1, columns)

    def columns(self, layer: int, total: int) -> tuple[Tensor, Tensor]:
        """Columns (B, M) that a layer works on of a sequence of `total`, and which of them count."""
        assert self.visual is not None
        length = self.visual.shape[1]
        stage = max((s for s in self.kept if s <= layer), default=None)
        if stage is None:
            every = torch.arange(total, device=self.visual.device).expand(len(self.visual), -1)
            return every, torch.ones_like(every, dtype=torch.bool)
        columns, counts = self.kept[stage]
        more = torch.arange(length, total, device=columns.device).expand(len(columns), -1)
        return torch.cat([columns, more], 1), torch.cat([counts, torch.ones_like(more, dtype=torch.bool)], 1)

    def picked(self, indices: Tensor, rows: int) -> Drops:
        """Of some of the rows, of which there are `rows`."""
        after = copy.copy(self)
        after.scores = None
        after.kept = {s: (picked(c, indices, rows), picked(n, indices, rows)) for s, (c, n) in self.kept.items()}
        if self.visual is not None and self.last is not None:
            after.visual, after.last = picked(self.visual, indices, rows), picked(self.last, indices, rows)
            after.real = None if self.real is None else picked(self.real, indices, rows)
        return after

    def first(self, total: int) -> Drops:
        """Of the first `total` columns.

        Raises:
            ValueError: the layers have not the same columns behind those.
        """
        if self.visual is None or total >= self.visual.shape[1]:
            return self
        after, gone = copy.copy(self), self.visual.shape[1] - total
        whole = torch.arange(total, self.visual.shape[1], device=self.visual.device)
        for stage, (columns, counts) in self.kept.items():
            if columns.shape[1] < gone or not bool((columns[:, -gone:] == whole).all()):
                raise ValueError(
                    f"The cache cannot be cropped to {total} tokens: behind that, layers have dropped visual tokens "
                    "(llm_layers). Crop to what lies behind the images, or read the prompt anew."
                )
            after.kept = {**after.kept, stage: (columns[:, :-gone], counts[:, :-gone])}
        after.visual = self.visual[:, :total]
        return after


def picked(values: Tensor, indices: Tensor, rows: int) -> Tensor:
    """Some of `rows` rows of values (b, ...); b may be a divisor of `rows`, as beams of one prompt stand together."""
    return values.repeat_interleave(rows // len(values), dim=0)[indices.to(values.device)]


class LayerPruning:
    """Hooks on a language model's layers, which cut what their call's `Drops` say."""

    def __init__(self, layers: list[int], keeps: Keeps, latest: Any = None, rule: str = "attention") -> None:
        """`layers` counts from 1: the first to run on fewer tokens is the one after; `keeps`: tokens kept of n."""
        self.stages, self.keeps, self.latest, self.rule = sorted(layers), keeps, latest, rule
        self.handles: list[Any] = []

    @property
    def kept(self) -> dict[int, tuple[Tensor, Tensor]]:
        """`Drops.kept` of this thread's latest call."""
        drops = None if self.latest is None else self.latest.ask("drops", None)
        return {} if drops is None else drops.kept

    def install(self, model: nn.Module) -> None:
        """Hook the layers of a language model.

        Raises:
            ValueError: a layer there is not, or layers whose masks or features do not allow it.
        """
        layers: Any = model.layers
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if self.stages[-1] >= len(layers) or kinds != {"full_attention"}:
            raise ValueError(
                f"llm_layers={self.stages} cannot be used with a language model of {len(layers)} layers of "
                f"{', '.join(sorted(kinds))}; expected layers from 1 to {len(layers) - 1}, all of full attention."
            )
        for index in range(self.stages[0], len(layers)):
            hook = functools.partial(self._before, index)
            self.handles.append(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
        self.handles.append(layers[-1].register_forward_hook(self._after, with_kwargs=True))
        for stage in self.stages if self.rule != "random" else ():
            layers[stage - 1].self_attn.attention_watched = True

    def remove(self, model: nn.Module) -> None:
        """Take the hooks off again."""
        while self.handles:
            self.handles.pop().remove()
        for module in model.modules():
            vars(module).pop("attention_watched", None)

    def _before(self, index: int, layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Hand a layer what is left of its inputs."""
        drops = drops_of(kwargs)
        if drops is None or drops.visual is None:
            return None
        hidden, (*rest,), cache = args[0], args[1:], cache_of(kwargs)
        kwargs = dict(kwargs)
        if cache is not None and cache.get_seq_length(index):
            mask, queries = kwargs.get("attention_mask"), hidden.shape[1]
            total = cache.get_seq_length(0) if mask is None else mask.shape[-1]
            columns, counts = drops.columns(index, total)
            kwargs["attention_mask"] = cut_mask(mask, None, columns, counts, queries)
            return (hidden, *rest), kwargs
        if index == self.stages[0]:
            drops.total = hidden.shape[1]
            if drops.total < drops.visual.shape[1]:
                raise ValueError("llm_layers needs the whole prompt in one call; do not set prefill_chunk_size.")
        if index in self.stages:
            before = drops.columns(index - 1, drops.total)[0]
            if index not in drops.kept:
                drops.choose(index, self.keeps, kwargs["position_embeddings"])
            columns = drops.columns(index, drops.total)[0]
            place = torch.zeros(len(columns), drops.total, dtype=torch.long, device=columns.device)
            place = place.scatter(1, before, torch.arange(before.shape[1], device=columns.device).expand_as(before))
            hidden = hidden.gather(1, place.gather(1, columns).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        columns, counts = drops.columns(index, drops.total)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape[-1] != drops.total:
            raise ValueError("llm_layers needs a cache that grows; do not set cache_implementation='static'.")
        kwargs["attention_mask"] = cut_mask(mask, columns, columns, counts, columns.shape[1])
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"].expand(len(columns), -1).gather(1, columns)
        kwargs["position_embeddings"] = tuple(
            part.expand(len(columns), -1, -1).gather(1, columns.unsqueeze(-1).expand(-1, -1, part.shape[-1]))
            for part in kwargs["position_embeddings"]
        )
        return (hidden, *rest), kwargs

    def _after(self, layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Put the last layer's output back to its columns; where tokens were dropped there are zeros."""
        drops = drops_of(kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        if drops is None or drops.visual is None or not drops.kept:
            return output
        columns = drops.columns(10**9, drops.total)[0]
        if hidden.shape[1] != columns.shape[1]:
            return output
        columns = columns.unsqueeze(-1).expand_as(hidden)
        whole = hidden.new_zeros(len(hidden), drops.total, hidden.shape[-1]).scatter(1, columns, hidden)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole


def drops_of(arguments: dict[str, Any]) -> Drops | None:
    """What is dropped of the prompt that a layer is called with."""
    drops: Drops | None = arguments.get(DROPS)
    return drops


#: the argument of layers and attention that tells their call's `Drops`
DROPS = "token_pruner_drops"


def cut_mask(mask: Tensor | None, rows: Tensor | None, columns: Tensor, counts: Tensor, queries: int) -> Tensor | None:
    """The mask (B, 1, Q, KV) of the columns (B, M) that are left; what does not count is hidden but from itself.

    `rows` are the queries that are left, None for all; without a mask attention is causal, and stays so.
    """
    if mask is None:
        if bool(counts.all()):
            return None
        causal = torch.ones(queries, columns.shape[1], dtype=torch.bool, device=columns.device)
        mask = causal.tril(columns.shape[1] - queries).expand(len(columns), 1, -1, -1)
    else:
        mask = mask.expand(len(columns), -1, -1, -1)
        if rows is not None:
            mask = mask.gather(2, rows[:, None, :, None].expand(-1, 1, -1, mask.shape[3]))
        mask = mask.gather(3, columns[:, None, None].expand(-1, 1, mask.shape[2], -1))
    hide = ~counts[:, None, None].expand_as(mask)
    if queries == columns.shape[1]:
        hide = hide & ~torch.eye(queries, dtype=torch.bool, device=mask.device)
    return mask.masked_fill(hide, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)
