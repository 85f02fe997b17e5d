"""Copies of patches that are not encoded: against stock runs of whole images in which nothing attends to them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AttentionInterface
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward
from transformers.vision_utils import get_vision_window_index

from hf_efficient import TokenPrunerConfig, attach_token_pruner, prune_inputs, remember_images
from tests.tiny import FAMILIES, ROWS, generate, image, prompts, pruned, recorded, stock, video_prompts

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
# rows and columns of the cells of a page that hold something else than white, of pages of 8 x 5, 3 x 4 and 4 x 5 cells
# (of the first, those of the third and fourth row are in two windows of Qwen2.5-VL's encoder, row after row)
MARKS = [[(1, 1), (1, 2), (2, 0), (2, 3), (3, 0), (3, 3), (5, 3)], [(1, 2)], [(0, 0), (3, 4)]]
SIZES = [(224, 140), (84, 112), (112, 140)]


def page(index: int, noise: int = 0) -> Image.Image:
    """White, with a few cells of other content, and up to so many levels of noise."""
    pixels = np.full((*SIZES[index], 3), 250, dtype=np.uint8)
    for seed, (row, column) in enumerate(MARKS[index]):
        pixels[28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = np.asarray(image(seed, 28, 28))
    drawn = np.random.default_rng(index).integers(-noise, noise + 1, pixels.shape)
    return Image.fromarray((pixels.astype(int) + drawn).clip(0, 255).astype(np.uint8))


def pages(name: str, rows: list[list[int]] = ROWS, draw: Callable[[int], Image.Image] = page) -> dict[str, Any]:
    return {**prompts(name, rows), "images": [draw(i) for row in rows for i in row]}


def merging(name: str, **settings: Any) -> tuple[Any, Any]:
    return pruned(name, **{"budget": 1.0, "merge_copies": 0.0, **settings})


class Whole:
    """A stock model on whole images, in which no token attends to a cell that is not among `cells`.

    Attributes:
        logits: (B, L, V).
        positions: (3, B, L).
        stays: (B, L) bool, the columns of the prompt that stay.
        received: attention that each cell of `cells` receives in the encoder's block that importance comes from, of
            every image.
    """

    def __init__(self, name: str, cells: list[torch.Tensor], arguments: dict[str, Any]) -> None:
        model, processor = stock(name)
        visual, inputs = model.base_model.visual, processor(**arguments)
        counts = (inputs["image_grid_thw"].prod(-1) // 4).tolist()
        keep = torch.cat([torch.isin(torch.arange(n), own) for n, own in zip(counts, cells, strict=True)])
        order = torch.arange(len(keep))
        if name == "qwen2_5_vl":
            order = get_vision_window_index(inputs["image_grid_thw"], 2, visual.window_size, visual.patch_size)[0]
        self.seen, self.start = keep[order].repeat_interleave(4), 0
        self.weights: dict[Any, list[torch.Tensor]] = {}
        AttentionInterface.register("without_copies", self.attend)
        visual.config._attn_implementation = "without_copies"
        self.stays = inputs["attention_mask"].bool()
        with torch.no_grad():
            with recorded(model) as calls:
                model(**inputs)
            self.positions = calls[0]["position_ids"][-3:]
            self.stays[inputs["input_ids"] == model.config.image_token_id] = keep
            arguments = {**inputs, "attention_mask": self.stays.long(), "position_ids": self.positions}
            self.logits = model(**arguments).logits
        block = visual.blocks[1 if name == "qwen2_5_vl" else 2].attn
        received = torch.cat(self.weights[block]).view(-1, 4).sum(-1)[order.argsort()]
        self.received = [own[own > 0] for own in received.split(counts)]

    def attend(self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen = self.seen[self.start : self.start + key.shape[2]]
        if not self.start:
            self.weights[module] = []
        self.start = (self.start + key.shape[2]) % len(self.seen)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None, None]
        output, weights = eager_attention_forward(module, query, key, value, mask, **kwargs)
        self.weights[module].append(weights[0, :, seen].mean((0, 1)) if bool(seen.any()) else seen.float())
        return output, weights


@pytest.mark.parametrize("rows", [ROWS, [[0, 1, 2]], [[2], [], [1]]])
@pytest.mark.parametrize("name", QWEN)
def test_the_rest_is_encoded_and_read_as_if_nothing_attended_to_copies(name: str, rows: list[list[int]]) -> None:
    model, processor = merging(name)
    inputs = processor(**pages(name, rows))
    encoded: list[int] = []
    model.base_model.visual.patch_embed.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    with torch.no_grad(), recorded(model) as calls:
        logits = model(**inputs).logits
    units = model.token_pruner.last
    assert all(len(unit.indices) < unit.num_tokens for unit in units)
    assert encoded == [4 * sum(len(unit.indices) for unit in units)]
    expected = Whole(name, [unit.indices for unit in units], pages(name, rows))
    for row, columns in enumerate(expected.stays):
        real = inputs["attention_mask"][row].bool()
        assert torch.allclose(logits[row, real], expected.logits[row, columns], atol=1e-5)
        assert torch.equal(calls[0]["position_ids"][-3:, row, real], expected.positions[:, row, columns])


@pytest.mark.parametrize("name", QWEN)
def test_importance_is_the_attention_received_among_what_is_no_copy(name: str) -> None:
    model, processor = merging(name)
    with torch.no_grad():
        model(**processor(**pages(name)))
    cells = [unit.indices for unit in model.token_pruner.last]
    model, processor = merging(name, budget=3, method="top_importance")
    with torch.no_grad():
        model(**processor(**pages(name)))
    received = Whole(name, cells, pages(name)).received
    for unit, own, scores in zip(model.token_pruner.last, cells, received, strict=True):
        assert unit.indices.tolist() == own[scores.topk(3).indices.sort().values].tolist()
        assert float(unit.importance_retained) == pytest.approx(
            float(scores.topk(3).values.sum() / scores.sum()), rel=1e-4
        )


@pytest.mark.parametrize("name", QWEN)
def test_marked_cells_stay_and_the_rule_says_which_white_ones(name: str) -> None:
    model, processor = merging(name)
    with torch.no_grad():
        model(**processor(**pages(name)))
    for index, unit in enumerate(model.token_pruner.last):
        columns = SIZES[index][1] // 28
        marked = {row * columns + column for row, column in MARKS[index]}
        kept = set(unit.indices.tolist())
        assert marked <= kept
        # after a mark a white cell is predicted to be like it, or after one that was; so is the first of all
        assert kept - marked <= {0} | {i + 1 for i in marked} | {i + columns for i in marked}
        assert unit.grid == (SIZES[index][0] // 28, columns)
        assert unit.mass is not None
        assert int(unit.mass.sum()) == unit.num_tokens
        assert int(unit.mass.max()) > 3


@pytest.mark.parametrize("name", QWEN)
def test_without_copies_the_model_is_the_stock_one_bit_for_bit(name: str) -> None:
    arguments = prompts(name, ROWS)
    model, processor = stock(name)
    inputs = processor(**arguments)
    logits, tokens = model(**inputs).logits, generate(model, inputs)
    model, processor = merging(name)
    same = processor(**arguments)
    assert all(torch.equal(value, same[key]) for key, value in inputs.items())
    assert torch.equal(model(**same).logits, logits)
    assert torch.equal(generate(model, same), tokens)


@pytest.mark.parametrize("settings", [{}, {"budget": 4}, {"budget": 4, "method": "itg"}])
@pytest.mark.parametrize("name", QWEN)
def test_a_batch_is_its_rows_and_generation_is_forward(name: str, settings: dict[str, Any]) -> None:
    model, processor = merging(name, **settings)
    together = processor(**pages(name))
    with torch.no_grad():
        logits = model(**together).logits
        step = model.generate(**together, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
        assert torch.allclose(logits[:, -1], step, atol=1e-5)
        for row, shown in enumerate(ROWS):
            arguments = pages(name, [shown])
            arguments["text"] = pages(name)["text"][row : row + 1]
            inputs = processor(**arguments)
            alone = model(**inputs).logits[0]
            assert torch.allclose(alone, logits[row, together["attention_mask"][row].bool()], atol=1e-5)
            assert torch.equal(generate(model, inputs)[0], generate(model, together)[row])


@pytest.mark.parametrize("name", QWEN)
def test_preparing_inputs_equals_an_attached_pair(name: str) -> None:
    asked: dict[str, Any] = {"budget": 3, "question_weight": 1.0, "method": "top_importance"}
    for settings in ({"budget": 1.0}, {"budget": 0.2}, asked, {"budget": 3, "adaptive": True}):
        config = TokenPrunerConfig(**settings, merge_copies=0.0)
        model, processor = stock(name)
        inputs = processor(**pages(name))
        before = inputs["pixel_values"].clone()
        made = prune_inputs(model, inputs, config)
        assert torch.equal(inputs["pixel_values"], before)
        output = made["mm_encoder_outputs"]["image"]
        kept = [unit.indices.tolist() for unit in output.kept]
        assert list(map(len, output.pooler_output)) == list(map(len, kept))
        if config.adaptive:
            continue
        tokens = generate(model, made)
        attached, attached_processor = attach_token_pruner(model, processor, config)
        expected = attached_processor(**pages(name))
        assert torch.equal(made["input_ids"], expected["input_ids"])
        assert torch.equal(tokens, generate(attached, expected))
        assert [unit.indices.tolist() for unit in attached.token_pruner.last] == kept


@pytest.mark.parametrize("method", ["id_pruner", "top_importance", "itg", "tome", "uniform"])
@pytest.mark.parametrize("name", QWEN)
def test_the_budget_is_spent_on_what_is_no_copy(name: str, method: str) -> None:
    model, processor = merging(name)
    with torch.no_grad():
        model(**processor(**pages(name)))
        cells = [unit.indices for unit in model.token_pruner.last]
        model, processor = merging(name, budget=0.2, method=method)
        inputs = processor(**pages(name))
        model(**inputs)
    units = model.token_pruner.last
    for unit, own in zip(units, cells, strict=True):
        assert len(unit.indices) == min(len(own), TokenPrunerConfig(budget=0.2).tokens_to_keep(unit.num_tokens))
        assert bool(torch.isin(unit.indices, own).all())
        if method in ("itg", "tome"):
            assert unit.mass is not None
            assert int(unit.mass.sum()) == unit.num_tokens
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == sum(len(unit.indices) for unit in units)


@pytest.mark.parametrize("name", QWEN)
def test_near_copies_are_within_the_tolerance_of_what_stands_for_them(name: str) -> None:
    def noisy(index: int) -> Image.Image:
        return page(index, noise=2)

    exact, near = merging(name), merging(name, merge_copies=4 / 255)
    inputs = exact[1](**pages(name, draw=noisy))
    assert not bool(inputs["pixel_values"].isinf().any())  # noise leaves no exact copy
    with torch.no_grad():
        near[0](**near[1](**pages(name, draw=noisy)))
    for index, unit in enumerate(near[0].token_pruner.last):
        cells = np.asarray(noisy(index)).reshape(SIZES[index][0] // 28, 28, SIZES[index][1] // 28, 28, 3).swapaxes(1, 2)
        flat = torch.from_numpy(cells.reshape(unit.num_tokens, -1).astype(int))
        assert len(unit.indices) < unit.num_tokens / 2
        assert unit.assignment is not None
        assert int((flat - flat[unit.indices][unit.assignment]).abs().max()) <= 4
        lower = merging(name, merge_copies=3 / 255)[1](**pages(name, [[index]], draw=noisy))
        assert int(lower["pixel_values"].isinf().sum()) < unit.num_tokens - len(unit.indices)


def test_prepared_inputs_are_measured_by_the_stock_processors_colours() -> None:
    config = TokenPrunerConfig(budget=1.0, merge_copies=4 / 255)
    model, processor = stock("qwen2_vl")
    processor.image_processor.image_std = [0.4, 0.2, 0.3]  # of another model than the family's usual one
    inputs = processor(**pages("qwen2_vl", draw=lambda i: page(i, noise=2)))
    with pytest.raises(ValueError, match=r"merge_copies=0\.0156.* difference of pixel values.* config, processor\)"):
        prune_inputs(model, inputs, config)
    made = prune_inputs(model, inputs, config, processor)
    model, processor = attach_token_pruner(model, processor, config)
    inputs = processor(**pages("qwen2_vl", draw=lambda i: page(i, noise=2)))
    assert torch.equal(made["input_ids"], inputs["input_ids"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", QWEN)
def test_casting_the_pixels_changes_nothing_of_what_is_kept(name: str, dtype: torch.dtype) -> None:
    def faint(index: int) -> Image.Image:
        return page(index, noise=1)

    model, processor = merging(name, merge_copies=1 / 255)
    inputs = processor(**pages(name, draw=faint))
    kept = []
    with torch.no_grad():
        for given in (inputs, {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}):
            model(**given)
            kept.append([unit.indices.tolist() for unit in model.token_pruner.last])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", QWEN)
def test_remembered_images_and_videos_go_on_as_they_did(name: str) -> None:
    model, processor = merging(name, budget=4, method="top_importance")
    inputs = processor(**pages(name))
    with torch.no_grad():
        logits = model(**inputs).logits
        with remember_images(model):
            assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(model(**inputs).logits, logits)
        other, other_processor = pruned(name, budget=4, method="top_importance")
        clips = video_prompts(name)
        assert torch.equal(model(**processor(**clips)).logits, other(**other_processor(**clips)).logits)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in QWEN])
def test_other_families_are_refused(name: str) -> None:
    model, processor = stock(name)
    config = TokenPrunerConfig(merge_copies=0.0)
    refused = rf"merge_copies=0.0 .*'{name}'.*qwen2_vl, qwen2_5_vl, qwen3_vl. Set merge_copies=None"
    with pytest.raises(ValueError, match=refused):
        attach_token_pruner(model, processor, config)
    assert not hasattr(model.base_model, "token_pruner")
    with pytest.raises(ValueError, match=refused):
        prune_inputs(model, processor(**prompts(name, ROWS)), config)


@pytest.mark.parametrize("value", [-0.1, 1.0, True, "exact"])
def test_a_tolerance_is_a_number_below_one(value: Any) -> None:
    with pytest.raises(ValueError, match=r"merge_copies=.* expected None or a number in \[0, 1\)"):
        TokenPrunerConfig(merge_copies=value)
