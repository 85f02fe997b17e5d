"""Line breaks of anyres families keep their rows, within the budget: against a plain search."""

import pytest
import torch

from hf_efficient import attach_token_pruner
from hf_efficient.representation.vlm.line_breaks import keep_rows
from tests.tiny import prompts, pruned, video_prompts
from tests.tiny_models import llava_onevision


def layout(outside: int, widths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and line-break marks of `outside` tokens before rows of the given widths."""
    row = [-1] * outside + [r for r, width in enumerate(widths) for _ in range(width + 1)]
    newline = [False] * outside + [i == width for width in widths for i in range(width + 1)]
    return torch.tensor(row), torch.tensor(newline)


def by_search(order: list[int], row: list[int], newline: list[bool], k: int) -> set[int]:
    """The rule in words: the longest start that fits with its breaks, then what to do with a place that remains."""
    breaks = {row[i]: i for i in range(len(row)) if newline[i]}

    def with_breaks(tokens: list[int]) -> set[int]:
        return set(tokens) | {breaks[row[t]] for t in tokens if row[t] >= 0}

    length = max(j for j in range(len(order) + 1) if len(with_breaks(order[:j])) <= k)
    kept = with_breaks(order[:length])
    assert k - len(kept) in (0, 1)
    if len(kept) < k:
        cheap = [t for t in order[length:] if len(with_breaks([*order[:length], t])) == len(kept) + 1]
        following = order[length]
        kept.add(cheap[0] if cheap else breaks[row[following]] if kept else following)
    return kept


@pytest.mark.parametrize(("outside", "widths"), [(6, [4, 4, 4]), (0, [5, 5]), (0, [9]), (3, [1, 2, 1, 2]), (1, [1])])
def test_rows_are_kept_as_a_plain_search_keeps_them(outside, widths):
    row, newline = layout(outside, widths)
    tokens = (~newline).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(0)
    for k in range(1, len(row)):
        taken = min(k, len(tokens))
        shuffled = [tokens[torch.randperm(len(tokens), generator=generator)][:taken] for _ in range(20)]
        kept = keep_rows(torch.stack(shuffled), row, newline, k)
        assert (kept.sum(1) == k).all()
        for order, mask in zip(shuffled, kept, strict=True):
            expected = by_search(order.tolist(), row.tolist(), newline.tolist(), k)
            assert set(mask.nonzero().squeeze(1).tolist()) == expected


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 20, 33, 55])
def test_rows_that_hold_a_kept_token_end_with_their_break(name, budget):
    model, processor = pruned(name, budget=budget)
    with torch.no_grad():
        model(**processor(**prompts(name, [[0], [2]])))
    for unit, rows, columns in zip(model.base_model.token_pruner.last, (6, 8), (8, 4), strict=True):
        row, newline = layout(16, [columns] * rows)
        kept = torch.zeros(len(row), dtype=torch.bool)
        kept[unit.indices] = True
        assert int(kept.sum()) == budget
        shown = {int(r) for r in row[kept & ~newline] if r >= 0}
        ended = {int(r) for r in row[kept & newline]}
        if budget > 1:
            assert shown <= ended
        assert len(ended - shown) <= 1  # a single place that nothing else could take
        assert (kept & ~newline).any()


def test_a_video_ends_with_its_break():
    model, processor = pruned("llava_onevision", budget=5)
    with torch.no_grad():
        model(**processor(**video_prompts("llava_onevision")))
    for unit in model.base_model.token_pruner.last:
        assert unit.indices[-1] == unit.num_tokens - 1
        assert len(unit.indices) == 5


def test_quotas_give_every_tile_something():
    model, processor = pruned("llava_next", budget=30, min_group_share=1.0, coverage_mix=0.0)
    with torch.no_grad():
        model(**processor(**prompts("llava_next", [[0]])))
    (unit,) = model.base_model.token_pruner.last
    row, newline = layout(16, [8] * 6)
    column = torch.tensor([0] * 16 + list(range(9)) * 6)
    tile = torch.where(row < 0, 0, 1 + 2 * ((row + 1) >= 4) + (column >= 4).long())  # a row of padding comes before
    tile = tile.masked_fill(newline, -1)[unit.indices]
    assert set(tile.tolist()) >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("name", "frame"), [("qwen2_vl", 4), ("qwen2_5_vl", 4), ("llava_onevision", 4)])
def test_quotas_give_every_frame_its_share(name, frame):
    model, processor = pruned(name, budget=6, min_group_share=1.0, coverage_mix=0.0, importance_weight=1.0)
    with torch.no_grad():
        model(**processor(**video_prompts(name)))
    for unit in model.base_model.token_pruner.last:
        tokens = unit.indices[unit.indices < unit.num_tokens - unit.num_tokens % frame]
        count = (tokens // frame).bincount(minlength=unit.num_tokens // frame)
        assert count.min() >= len(tokens) // len(count)


def test_a_feature_map_that_the_model_resizes_is_cut_as_resized():
    """LLaVA-OneVision shrinks rows beyond m tiles' worth of tokens; importance and tiles are shrunk with them."""
    model, processor = llava_onevision(aspect="anyres_max_1")
    attach_token_pruner(model, processor, {"budget": 9})
    inputs = processor(**prompts("llava_onevision", [[0]]))
    with torch.no_grad():
        model(**inputs)
    (unit,) = model.base_model.token_pruner.last
    assert unit.num_tokens == 16 + 3 * 4 + 3  # 6 x 8 over sqrt(48 / 16)
    assert len(unit.indices) == 9
