"""Grade all questions about an image in one forward pass.

Every question with its right answer stands behind the image as a turn of its own, which sees the image and
itself. A turn is answered rightly by greedy decoding exactly where each word of the right answer, and the end after
it, is the likeliest next word given the words before: so one pass grades what would take one generation per question.

Where another answer than the right one may count (`scoring.RULES`), or the words themselves are wanted, the likeliest
words take the place of the right ones and are read again, until they stay: then they are what greedy decoding says, up
to the length of the right answer. Each pass settles at least one more word.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.representation.scoring import RULES
from hf_efficient.representation.evaluation.questions import Question, Scene, on_device


@dataclass
class Turn:
    """A question behind an image, and what was answered.

    Attributes:
        asked: token ids of the question.
        right: token ids of the right answer, and the end.
        given: the likeliest ids in their place.
        settled: whether `given` was read behind itself, or behind the right answer which it is.
        probabilities: of the ids given.
    """

    question: Question
    asked: list[int]
    right: list[int]
    given: list[int] = field(default_factory=list)
    settled: bool = False
    probabilities: list[float] = field(default_factory=list)

    @property
    def read(self) -> list[int]:
        """The answer that the model reads in the next pass."""
        return self.given or self.right


@dataclass(frozen=True)
class Answer:
    """What was said to a question: the words, whether they are right, and how likely the model found them.

    `words` and `probability` (of all words and the end) are those of greedy decoding where the turn was settled.
    """

    words: str
    right: bool
    first_probability: float
    probability: float


def grade_scenes(
    model: Any, processor: Any, scenes: Sequence[Scene], batch_size: int = 64, vision_inputs: Any = None
) -> list[list[bool]]:
    """Which questions about each scene are answered rightly: as `answer_scenes`, a bool per question."""
    answers = answer_scenes(model, processor, scenes, batch_size, vision_inputs)
    return [[answer.right for answer in row] for row in answers]


@torch.no_grad()
def answer_scenes(
    model: Any,
    processor: Any,
    scenes: Sequence[Scene],
    batch_size: int = 64,
    vision_inputs: Any = None,
    settle: Collection[str] = tuple(RULES),
    before: Sequence[Image.Image] | None = None,
) -> list[list[Answer]]:
    """What the model says to all questions about each scene.

    Args:
        model: a model with 1-D position ids (LLaVA), stock or with a token pruner.
        processor: the model's, in the same state.
        scenes: images with questions.
        batch_size: scenes that go through the model together.
        vision_inputs: replaces how the images are encoded: called with the model, the (B, 3, H, W) pixel values and
            the scenes, it returns the encoder's output and the number of visual tokens of an image.
        settle: families whose words are wanted as greedy decoding says them, and not only whether they are right.
        before: an image for each scene that stands in the prompt before the scene's own.

    Returns:
        For every scene an answer per question.
    """
    answers: list[list[Answer]] = []
    for start in range(0, len(scenes), batch_size):
        batch = scenes[start : start + batch_size]
        images = [[scene.image] for scene in batch]
        if before is not None:
            images = [[other, *own] for other, own in zip(before[start : start + batch_size], images, strict=True)]
        inputs = processor(
            images=[image for row in images for image in row],
            text=[" ".join([processor.image_token] * len(images[0]))] * len(batch),
            return_tensors="pt",
        )
        inputs = on_device(model, dict(inputs))
        prefix = inputs["input_ids"]
        if vision_inputs is None:
            encoded = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        else:
            encoded, tokens = vision_inputs(model, inputs["pixel_values"], batch)
            placeholder = prefix.new_full((len(batch), tokens), model.config.image_token_id)
            prefix = torch.cat([prefix[:, :1], placeholder], dim=1)
        turns = [_encode_turns(processor, scene) for scene in batch]
        _read(model, prefix, encoded, turns)
        while rows := [r for r, row in enumerate(turns) if any(_is_open(turn, settle) for turn in row)]:
            again = [[turn for turn in turns[r] if _is_open(turn, settle)] for r in rows]
            _read(model, prefix[rows], _of_prompts(encoded, rows, len(turns)), again)
        answers.extend([_answer(processor, turn) for turn in row] for row in turns)
    return answers


def _is_open(turn: Turn, settle: Collection[str]) -> bool:
    return not turn.settled and turn.question.family in settle


def _of_prompts(encoded: Any, rows: Sequence[int], prompts: int) -> Any:
    """The encoder's output for some of the prompts."""
    images = len(encoded.pooler_output) // prompts
    at = [row * images + image for row in rows for image in range(images)]
    part = type(encoded)(pooler_output=[encoded.pooler_output[i] for i in at])
    if hasattr(encoded, "kept"):
        part.kept = [encoded.kept[i] for i in at]
    return part


def _encode_turns(processor: Any, scene: Scene) -> list[Turn]:
    ids = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    end = processor.tokenizer.eos_token_id
    return [Turn(question, ids(question.question), [*ids(question.answer), end]) for question in scene.questions]


def _read(model: Any, prefix: Tensor, encoded: Any, turns: list[list[Turn]]) -> None:
    """One pass over prefix (B, P) and turns, which take down the likeliest next words."""
    packed = _pack(prefix, [[(turn.asked, turn.read) for turn in row] for row in turns])
    pruner = getattr(model.base_model, "token_pruner", None)
    if pruner is not None and pruner.keeps_text_positions:
        packed["position_ids"] = _original_positions(packed["position_ids"], encoded.kept)
    logits = model(**packed, mm_encoder_outputs={"image": encoded}).logits
    total = logits.logsumexp(-1)
    logits[..., model.config.image_token_id] = -torch.inf  # read again, it would ask for an image
    likeliest = logits.max(-1)
    probabilities = (likeliest.values - total).exp()
    for row, words, chances in zip(turns, likeliest.indices, probabilities, strict=True):
        at = prefix.shape[1]
        for turn in row:
            first, read = at + len(turn.asked) - 1, turn.read
            turn.given = words[first : first + len(read)].tolist()
            turn.probabilities = chances[first : first + len(read)].tolist()
            turn.settled = turn.given == read
            at += len(turn.asked) + len(read)


def _answer(processor: Any, turn: Turn) -> Answer:
    end = processor.tokenizer.eos_token_id
    said = turn.given[: turn.given.index(end)] if end in turn.given else turn.given
    words = processor.tokenizer.decode(said)
    rule = RULES.get(turn.question.family)
    right = turn.given == turn.right if rule is None else rule(words, turn.question.answer)
    length = len(said) + 1  # with the end
    product = float(torch.tensor(turn.probabilities[:length]).prod())
    return Answer(words, right, turn.probabilities[0], product)


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
    packed = {"input_ids": pad(rows, True, 0), "position_ids": pad(positions, True, 0), "attention_mask": mask[:, None]}
    return {name: value.to(prefix.device) for name, value in packed.items()}


def _original_positions(positions: Tensor, kept: Sequence[Any]) -> Tensor:
    """Positions (B, L) of packed turns in a prompt that was not pruned: one token, the images, and the turns."""
    images = len(kept) // len(positions)  # of a prompt
    n, k = kept[0].num_tokens, len(kept[0].indices)
    moved = positions + images * (n - k) * (positions > images * k)
    indices = torch.stack([unit.indices for unit in kept]).view(len(positions), images, k)
    starts = 1 + n * torch.arange(images, device=indices.device)
    moved[:, 1 : 1 + images * k] = (starts[:, None] + indices).flatten(1)
    return moved
