"""Placeholders and positions without an engine, against what they are in the unpruned prompt. Needs no vLLM."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_efficient.serving.vllm.model import joined, joined_indices
from hf_efficient.serving.vllm.places import digits, merged, numbers, raster, with_places
from hf_efficient.serving.vllm.positions import PrunedPositions
from hf_efficient.serving.vllm.processing import shrunk

IMAGE, VIDEO, START, END, TEXT, WIDTH, SIDE = 4, 5, 6, 7, 8, 16, 2


def test_runs_of_placeholders_get_shorter_and_the_text_among_them_stays() -> None:
    ids = [1, 9, 9, 9, 9, 2, 9, 9, 3]
    made = shrunk(ids, [i == 9 for i in ids], lambda run: run // 2)
    assert made == ([1, 9, 9, 2, 9, 3], [False, True, True, False, True, False])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_places_survive_every_float(dtype: torch.dtype) -> None:
    places = torch.tensor([[0, 1, 127], [128, 255, 256], [257, 511, 16383]])
    assert torch.equal(numbers(digits(places).to(dtype)), places.T)


def test_a_raster_counts_time_in_its_steps() -> None:
    assert raster(2, 1, 2, 2.5).tolist() == [[0, 0, 0], [0, 0, 1], [2, 0, 0], [2, 0, 1]]


def test_units_of_a_picture_are_joined_and_their_places_run_on() -> None:
    tokens = [torch.full((2, 1), float(i)) for i in range(3)]
    kept: list[Any] = [SimpleNamespace(indices=torch.tensor([0, 3]), num_tokens=4) for _ in range(3)]
    assert [len(x) for x in joined(tokens, [1, 2])] == [2, 4]
    assert [x.tolist() for x in joined_indices(kept, [1, 2])] == [[0, 3], [0, 3, 4, 7]]


class Stock:
    """As much of a model of vLLM as positions ask."""

    def embed_input_ids(self, ids: torch.Tensor, features: Any = None, *, is_multimodal: Any = None) -> torch.Tensor:
        embedded = torch.zeros(len(ids), WIDTH)
        if features is not None and len(features):
            embedded[is_multimodal] = torch.cat(list(features)).float()
        return embedded

    def forward(self, input_ids: Any, positions: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return positions


class Model(PrunedPositions, Stock):
    token_pruner = "any"
    config = SimpleNamespace(
        image_token_id=IMAGE, video_token_id=VIDEO,
        vision_config=SimpleNamespace(spatial_merge_size=SIDE, tokens_per_second=2),
    )  # fmt: skip


def medium(frames_apart: bool, draw: random.Random) -> tuple[str, list[int], float]:
    """Modality, raster in patches, seconds between frames."""
    rows, columns = draw.randint(1, 20) * SIDE, draw.randint(1, 20) * SIDE
    if draw.random() < 0.5:
        return "image", [1, rows, columns], 1.0
    return "video", [draw.randint(1, 9), rows // 4 // SIDE * SIDE + SIDE, columns // 4 // SIDE * SIDE + SIDE], 12.5


def check_steps(
    model: Model, ids: torch.Tensor, visual: torch.Tensor, positions: Any, rows: torch.Tensor, step: int
) -> None:
    """Prefill in steps, each of which may be the first, after a hit in the prefix cache."""
    numbered, want = positions
    for start in range(0, len(ids), step):
        end = min(start + step, len(ids))
        before, here = int(visual[:start].sum()), visual[start:end]
        buffer = torch.zeros(3, end - start + 2, dtype=torch.long)  # vLLM's is longer than a step
        buffer[:, : end - start] = numbered[:, start:end]
        given = rows[before : before + int(here.sum())]
        embedded = model.embed_input_ids(ids[start:end], [given] if len(given) else [], is_multimodal=here)
        assert embedded.shape[1] == WIDTH
        assert torch.equal(model.forward(None, buffer, embedded)[:, : end - start], want[:, start:end])
        assert model.moves is None


@pytest.mark.parametrize("frames_apart", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_positions_are_those_of_the_unpruned_prompt_however_it_is_cut(frames_apart: bool, seed: int) -> None:
    draw, model = random.Random(seed), Model()
    ids: list[int] = []
    full: list[list[int]] = []  # positions of what is kept, in the unpruned prompt
    features, encoded = [], []  # (first placeholder, its columns' features)
    following = 0
    largest = 0
    for _ in range(draw.randint(1, 3)):
        modality, grid, seconds = medium(frames_apart, draw)
        token, time = (IMAGE, 1) if modality == "image" else (VIDEO, grid[0])
        apart = frames_apart and modality == "video"
        step = 0.0 if apart else 1.0 if modality == "image" else 2 * seconds
        parts = time if apart else 1  # a time stamp before each frame
        places = raster(time, grid[1] // SIDE, grid[2] // SIDE, step)
        n, kept, first = len(places) // parts, [], len(ids)
        for part in range(parts):
            words = [TEXT] * draw.randint(1, 3) + [START]
            if part == 0:
                first = len(ids) + len(words)
            ids += words
            full += [[following + i] * 3 for i in range(len(words))]
            following += len(words)
            chosen = sorted(draw.sample(range(n), draw.randint(1, n)))
            own = places[part * n : (part + 1) * n]
            full += (own[chosen] + following).tolist()
            kept += [part * n + i for i in chosen]
            largest = max(largest, following + int(own.max()) + 1)
            following += int(own[:, 1:].max()) + 1  # transformers counts height and width alone
            ids += [token] * len(chosen) + [END]
            full.append([following] * 3)
            following += 1
        data = {f"{modality}_grid_thw": SimpleNamespace(data=torch.tensor(grid))}
        call: dict[str, Any] = {f"{modality}_grid_thw": torch.tensor([grid])}
        if modality == "video":
            data["second_per_grid_ts"] = SimpleNamespace(data=torch.tensor(0.0 if apart else seconds))
            call["second_per_grid_ts"] = torch.tensor([seconds])
        spot = SimpleNamespace(offset=first, length=len(ids) - 1 - first)
        features.append(SimpleNamespace(modality=modality, mm_position=spot, data=data))
        x = torch.full((len(kept), WIDTH), float(len(features))).to(torch.bfloat16)
        encoded.append(with_places(model, modality, call, [x], [torch.tensor(kept)], apart)[0])
    ids += [TEXT] * 3
    full += [[following + i] * 3 for i in range(3)]

    numbered, delta = model.get_mrope_input_positions(ids, features)
    want = torch.tensor(full).T
    visual = torch.tensor([i in (IMAGE, VIDEO) for i in ids])
    assert delta == max(largest, following + 3) - len(ids)
    assert torch.equal(numbered[:, ~visual], want[:, ~visual])
    check_steps(model, torch.tensor(ids), visual, (numbered, want), torch.cat(encoded), draw.randint(1, len(ids)))


def test_a_model_without_a_pruner_is_left_alone() -> None:
    model = Model()
    model.token_pruner = None  # type: ignore[assignment]
    x = torch.ones(2, WIDTH)
    model.embed_input_ids(torch.tensor([IMAGE, IMAGE]), [x], is_multimodal=torch.tensor([True, True]))
    assert model.moves is None
    assert merged([1, 4, 6], model) == (1, 2, 3)
