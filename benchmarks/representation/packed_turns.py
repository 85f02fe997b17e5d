"""Grade all questions about an image in one forward pass.

Every question with its right answer stands behind the image as a turn of its own, which sees the image and
itself. A turn is answered rightly by greedy decoding exactly where each word of the right answer, and the end after
it, is the likeliest next word given the words before: so one pass grades what would take one generation per question.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.evaluation.questions import Scene


@torch.no_grad()
def grade_scenes(
    model: Any, processor: Any, scenes: Sequence[Scene], batch_size: int = 64, vision_inputs: Any = None
) -> list[list[bool]]:
    """Which questions about each scene are answered rightly, word for word.

    Args:
        model: a model with 1-D position ids (LLaVA), stock or with a token pruner.
        processor: the model's, in the same state.
        scenes: images with questions.
        batch_size: scenes that go through the model together.
        vision_inputs: replaces how the images are encoded: called with the model, the (B, 3, H, W) pixel values and
            the scenes, it returns the encoder's output and the number of visual tokens of an image.

    Returns:
        For every scene a bool per question.
    """
    graded: list[list[bool]] = []
    for start in range(0, len(scenes), batch_size):
        batch = scenes[start : start + batch_size]
        inputs = processor(
            images=[scene.image for scene in batch], text=[processor.image_token] * len(batch), return_tensors="pt"
        )
        prefix = inputs["input_ids"]
        if vision_inputs is None:
            encoded = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        else:
            encoded, tokens = vision_inputs(model, inputs["pixel_values"], batch)
            placeholder = prefix.new_full((len(batch), tokens), model.config.image_token_id)
            prefix = torch.cat([prefix[:, :1], placeholder], dim=1)
        turns = [_encode_turns(processor, scene) for scene in batch]
        packed = _pack(prefix, turns)
        pruner = getattr(model.base_model, "token_pruner", None)
        if pruner is not None and pruner.keeps_text_positions:
            packed["position_ids"] = _original_positions(packed["position_ids"], encoded.kept)
        likeliest = model(**packed, mm_encoder_outputs={"image": encoded}).logits.argmax(-1)
        graded.extend(
            _grade(row, prefix.shape[1], scene_turns) for row, scene_turns in zip(likeliest, turns, strict=True)
        )
    return graded


def _encode_turns(processor: Any, scene: Scene) -> list[tuple[list[int], list[int]]]:
    """(question ids, answer ids with the end) of every question."""
    ids = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    end = processor.tokenizer.eos_token_id
    return [(ids(question.question), [*ids(question.answer), end]) for question in scene.questions]


def _pack(prefix: Tensor, turns: list[list[tuple[list[int], list[int]]]]) -> dict[str, Tensor]:
    """Inputs of prefix (B, P) and turns: ids, positions that restart behind the prefix, and the (B, 1, L, L) mask."""
    rows, owners, positions = [], [], []
    offset = prefix.shape[1]
    for row, scene_turns in zip(prefix, turns, strict=True):
        lengths = [len(question) + len(answer) for question, answer in scene_turns]
        rows.append(torch.cat([row, row.new_tensor([i for q, a in scene_turns for i in q + a])]))
        owners.append(torch.repeat_interleave(torch.arange(len(lengths) + 1), torch.tensor([offset, *lengths])))
        positions.append(torch.cat([torch.arange(offset), *(offset + torch.arange(length) for length in lengths)]))
    pad = torch.nn.utils.rnn.pad_sequence
    owner = pad(owners, True, -1)
    length = owner.shape[1]
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    mask = torch.ones(length, length, dtype=torch.bool).tril() & seen
    return {"input_ids": pad(rows, True, 0), "position_ids": pad(positions, True, 0), "attention_mask": mask[:, None]}


def _original_positions(positions: Tensor, kept: Sequence[Any]) -> Tensor:
    """Positions (B, L) of packed turns in a prompt that was not pruned: one token, the image, and the turns."""
    n, k = kept[0].num_tokens, len(kept[0].indices)
    moved = positions + (n - k) * (positions > k)
    moved[:, 1 : 1 + k] = 1 + torch.stack([unit.indices for unit in kept])
    return moved


def _grade(likeliest: Tensor, offset: int, turns: list[tuple[list[int], list[int]]]) -> list[bool]:
    """Whether the likeliest next words (L,) hold each turn's answer; `offset`: length of the prefix."""
    right, at = [], offset
    for question, answer in turns:
        first = at + len(question) - 1
        right.append(likeliest[first : first + len(answer)].tolist() == answer)
        at += len(question) + len(answer)
    return right
