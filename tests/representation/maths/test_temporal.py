"""Static tokens of videos are merged, and budgets shared, with totals that stay exact."""

from typing import Any

import pytest
import torch
from torch import Tensor

import hf_efficient
from hf_efficient import TokenPrunerConfig, attach_token_pruner, prune_inputs
from hf_efficient.representation.maths import temporal
from hf_efficient.representation.maths.sharing import information, share_budget
from tests.representation.methods import METHODS
from tests.tiny import FAMILIES, ROWS, generate, prompts, pruned, stock, video_prompts

FRAMES, SIZE = 6, 10

# parts that not every method gives are there in what is tested here
reduce_tokens: Any = hf_efficient.reduce_tokens
static_runs: Any = temporal.static_runs


def clip(moving: int = 2) -> tuple[Tensor, Tensor]:
    """One video (1, 60, 8): all places stand still but the first few, which change with every frame; and its frames."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn(SIZE, 8, generator=generator)
    video = frame.repeat(FRAMES, 1, 1)
    video[:, :moving] = torch.randn(FRAMES, moving, 8, generator=generator)
    return video.flatten(0, 1)[None], torch.arange(FRAMES * SIZE) // SIZE


def test_runs_are_found_and_told_by_their_means():
    x, frames = clip()
    runs = static_runs(x, frames[None], 0.99, 1)
    assert runs is not None
    still = [[place] for place in range(2, SIZE)]
    assert runs.starts[0].nonzero()[:, 0].tolist() == sorted(
        [t * SIZE + c for t in range(FRAMES) for c in range(2)] + [s[0] for s in still]
    )
    assert runs.length[0, 2] == FRAMES
    assert runs.length[0, SIZE] == 1
    noisy = x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    runs = static_runs(noisy, frames[None], 0.99, 1)
    mean = noisy.view(FRAMES, SIZE, 8)[:, 5].mean(0)
    torch.testing.assert_close(runs.mean(noisy)[0, 25], mean)
    assert runs.total(torch.ones(1, 60))[0, 25] == FRAMES
    p = 1e30 * torch.rand(1, 60, generator=torch.Generator().manual_seed(2))
    cubed = (runs.total(p, 3.0).double() ** 3)[0]
    alone = (p.double() ** 3)[0]
    torch.testing.assert_close(cubed[25] / cubed[0], alone.view(FRAMES, SIZE)[:, 5].sum() / alone[0], rtol=1e-4, atol=0)
    assert runs.total(torch.zeros(1, 60), 3.0).tolist() == [[0.0] * 60]


@pytest.mark.parametrize("sizes", [None, True])
def test_a_dull_place_that_stands_still_does_not_outweigh_what_moves(sizes):
    """16 frames of 24 places and six things that pass: as many of them are kept as without merging, but for one."""
    found = torch.zeros(2)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        base = 2 * torch.randn(16, generator=generator)
        x = (base + 0.5 * torch.randn(24, 16, generator=generator)).repeat(16, 1, 1)
        things = [(t, 5 * t % 24) for t in range(0, 16, 3)]
        for t, place in things:
            x[t, place] = 0.5 * base + 1.5 * torch.randn(16, generator=generator)
        x, frames = x.view(1, -1, 16), torch.arange(16 * 24) // 24
        passing = {24 * t + place for t, place in things}
        for i, alike in enumerate((0.0, 0.95)):
            config = TokenPrunerConfig(budget=6, proportional_attention=sizes, merge_static=alike)
            found[i] += len(passing & set(reduce_tokens(x, config, groups=frames).indices[0].tolist()))
    assert found[0] > 12
    assert found[1] >= found[0] - 1


def test_there_are_as_many_runs_as_are_asked_for():
    x, frames = clip()
    for least in (1, 20, 25, 60):
        runs = static_runs(x, frames[None], 0.99, least)
        assert int(runs.starts.sum()) == max(20, least)
    assert static_runs(x, frames[None], 0.0, 1).starts.sum() >= SIZE
    assert static_runs(x[:, :SIZE], frames[None, :SIZE], 0.9, 1) is None  # one frame
    assert static_runs(x[:, :59], frames[None, :59], 0.9, 1) is None  # unequal frames


@pytest.mark.parametrize("method", [m for m in METHODS if m != "prumerge"])
def test_a_still_token_is_told_once_and_no_variety_is_spent_on_it(method):
    x, frames = clip()
    config = TokenPrunerConfig(method=method, budget=20, merge_static=0.99)
    reduced = reduce_tokens(x, config, torch.ones(1, 60), groups=frames)
    assert reduced.tokens.shape == (1, 20, 8)
    assert reduced.mass.sum() == 60
    # 20 runs are all there is: each is one token, and nothing is lost
    torch.testing.assert_close(reduced.unpool(), x, atol=1e-5, rtol=1e-5)
    assert float(reduced.report.reconstruction_error) < 1e-9
    plain = reduce_tokens(
        x, TokenPrunerConfig(method=method, budget=20, proportional_attention=True), torch.ones(1, 60), groups=frames
    )
    assert float(plain.report.reconstruction_error) >= float(reduced.report.reconstruction_error) - 1e-9


def test_fewer_tokens_than_runs_are_chosen_among_runs():
    x, frames = clip()
    for method in ("id_pruner", "itg", "tome"):
        config = TokenPrunerConfig(method=method, budget=7, merge_static=0.99)
        reduced = reduce_tokens(x.expand(2, -1, -1), config, torch.ones(2, 60), groups=frames)
        runs = static_runs(x, frames[None], 0.99, 7)
        assert reduced.tokens.shape == (2, 7, 8)
        assert reduced.mass.sum(1).tolist() == [60.0, 60.0]
        assert runs.starts[0, reduced.indices[0]].all()
        assert torch.equal(reduced.assignment[0], reduced.assignment[0, runs.start[0]])  # a run goes together
    with pytest.raises(ValueError, match="other methods than 'prumerge'"):
        TokenPrunerConfig(method="prumerge", budget=7, merge_static=0.9)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("method", ["id_pruner", "itg"])
def test_models_take_merged_videos(name, method):
    model, processor = pruned(name, method=method, merge_static=0.7)
    inputs = processor(**video_prompts(name))
    tokens = generate(model, inputs)
    assert torch.equal(generate(model, inputs, use_cache=False), tokens)
    assert all(unit.mixture is not None for unit in model.base_model.token_pruner.last)


# --- budgets


def test_shared_budgets_are_exact_proportional_and_within_bounds():
    weights = torch.tensor([[6.0, 3.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    most = torch.tensor([10, 10, 10])
    assert share_budget(weights, most, 10)[0].tolist() == [6, 3, 1]
    for total in range(3, 31):
        given = share_budget(weights, most, total, least=1)
        assert given.sum(1).tolist() == [total] * 3
        assert (given >= 1).all()
        assert (given <= 10).all()
    assert share_budget(weights, most, 4, least=1)[1].tolist() == [2, 1, 1]


def test_information_is_the_spread_of_a_unit():
    flat, varied = torch.ones(1, 30, 5), torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(0))
    assert information(torch.cat([flat, varied]))[0] == 0
    assert information(2 * varied) == 2 * information(varied)


@pytest.mark.parametrize("name", ["smolvlm", "internvl", "qwen3_vl", "llava", "video_llava"])
def test_tiles_and_frames_share_the_budget_of_their_prompt(name):
    model, processor = stock(name)
    arguments = prompts(name, ROWS) if name not in ("qwen3_vl", "video_llava") else video_prompts(name)
    inputs = processor(**arguments)
    even = prune_inputs(model, inputs, TokenPrunerConfig(budget=2))
    shared = prune_inputs(model, inputs, TokenPrunerConfig(budget=2, adaptive=True))
    modality = next(iter(shared["mm_encoder_outputs"]))
    token = getattr(model.config, f"{modality}_token_id")
    places = [(prompt["input_ids"] == token).sum(1).tolist() for prompt in (even, shared)]
    assert places[0] == places[1]  # as many placeholders in every prompt
    kept = shared["mm_encoder_outputs"][modality].kept
    counts = [len(unit.indices) for unit in kept]
    assert sum(counts) == 2 * len(counts)
    assert min(counts) >= 1
    if name in ("smolvlm", "internvl"):
        assert max(counts) > 2
    logits = model(**shared).logits
    assert logits.isfinite().all()
    processor_pair = stock(name)
    with pytest.raises(ValueError, match=r"adaptive=True cannot be attached.*prune_inputs"):
        attach_token_pruner(*processor_pair, TokenPrunerConfig(adaptive=True))


@pytest.mark.parametrize("name", ["smolvlm", "internvl", "gemma3", "llava", "video_llava"])
def test_beams_of_a_shared_budget_see_their_own_images(name):
    """Units of uneven length: every prompt of a batch, with beams, answers as it does alone."""
    model, processor = stock(name)
    config = TokenPrunerConfig(budget=2, adaptive=True)
    batch = processor(**prompts(name, ROWS))
    fewer = prune_inputs(model, batch, config)
    counts = {len(unit.indices) for unit in fewer["mm_encoder_outputs"]["image"].kept}
    together = generate(model, fewer, num_beams=3)
    shown = prompts(name, ROWS)
    for row, chosen in enumerate(ROWS):
        images = shown["images"][row : row + 1] if FAMILIES[name].nested else [shown["images"][i] for i in chosen]
        alone = prune_inputs(
            model, processor(**{**shown, "text": shown["text"][row : row + 1], "images": images}), config
        )
        assert torch.equal(generate(model, alone, num_beams=3)[0], together[row])
    assert len(counts) > 1 or name in ("llava", "gemma3", "video_llava")
