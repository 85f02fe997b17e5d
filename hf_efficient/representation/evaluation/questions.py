"""Ask a vision-language model about images and measure what it costs: answers, prefill time, KV-cache bytes."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from hf_efficient.checks import checked_path
from hf_efficient.compat.transformers import cache_of
from hf_efficient.extras import extra
from hf_efficient.files import is_local
from hf_efficient.reading import Fields, parse_json
from hf_efficient.sparsity.storage.stored import load_stored

if TYPE_CHECKING:
    from hf_efficient.representation.config import TokenPrunerConfig

ASSETS = Path(__file__).parents[2] / "assets"
TINY_VLM = ASSETS / "tiny_vlm"
EVALUATION_SET = ASSETS / "tiny_vlm_eval"


def load_vlm(model_id: str | os.PathLike[str] = TINY_VLM, **kwargs: Any) -> tuple[Any, Any]:
    """Model (in evaluation mode) and processor of a folder or Hub id, stock, and without a progress bar.

    Weights may be stored sparsely. `kwargs` are for the model; `revision` is the processor's too.

    Raises:
        FileNotFoundError: the folder does not hold a model.
        OSError: there is neither such a folder nor such a model on the Hub.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    folder = Path(model_id)
    if not is_local(model_id) and len(folder.parts) != 2:  # on the Hub it has an owner
        raise FileNotFoundError(f"{str(model_id)!r} is missing: there is no such folder.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"No config.json in {str(model_id)!r}; expected a folder saved by save_pretrained.")
    logging.disable_progress_bar()
    with extra("vlm"):
        processor = AutoProcessor.from_pretrained(model_id, revision=kwargs.get("revision"))
    return load_stored(AutoModelForImageTextToText, model_id, **kwargs), processor


@dataclass(frozen=True)
class Question:
    """One question about an image, its one right answer, and the family of questions it belongs to."""

    question: str
    answer: str
    family: str


@dataclass(frozen=True)
class Scene:
    """An image (RGB), what is asked about it, and the photograph it was made on, where that is known."""

    name: str
    image: Image.Image
    questions: tuple[Question, ...]
    photograph: str | None = None


def load_evaluation_set(folder: str | os.PathLike[str] = EVALUATION_SET, limit: int | None = None) -> list[Scene]:
    """The scenes of a folder of images with questions, in order (`metadata.jsonl`, as of datasets' imagefolder).

    Args:
        folder: holds `metadata.jsonl`, a line `{"file_name": ..., "questions": [{"question", "answer", "family"}]}` per
            image, and the images. A line may name the `photograph` that the image was made on.
        limit: read only the first so many.

    Raises:
        TypeError: `folder` is no path.
        FileNotFoundError: there is no metadata.jsonl, or an image it names is missing.
        ValueError: a line is not of this form (the message names it), or there is no question at all.
    """
    path = checked_path("folder", folder) / "metadata.jsonl"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is missing: there is no such folder of images.")
    if not path.is_file():
        raise FileNotFoundError(f"No metadata.jsonl in {str(folder)!r}; expected a folder of images with questions.")
    scenes: list[Scene] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and len(scenes) == limit:
                break
            name, questions, photograph = _entry(line, f"{path}, line {number} is not a scene")
            scenes.append(Scene(name, _image(path.parent / name), questions, photograph))
    if not any(scene.questions for scene in scenes):
        raise ValueError(f"{path} asks nothing; expected at least one image with a question.")
    return scenes


def _entry(line: bytes, where: str) -> tuple[str, tuple[Question, ...], str | None]:
    """The image's name, the questions, and the photograph if one is named, of a line of metadata.jsonl."""
    fields = Fields(parse_json(line, where), where)
    name = fields.text("file_name")
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise fields.wrong("file_name", "the path of an image in the folder")
    asked = [Fields(question, f"{where}: questions") for question in fields.items("questions", 10_000)]
    questions = tuple(Question(q.text("question"), q.text("answer"), q.text("family")) for q in asked)
    return name, questions, fields.text("photograph") if fields.values.get("photograph") is not None else None


def _image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # Pillow has many ways to say what is wrong
        raise ValueError(f"{path} is no image that can be read: {error}") from error


def encode_prompts(processor: Any, images: Sequence[Image.Image], questions: Sequence[str]) -> dict[str, Tensor]:
    """Model inputs of one prompt per question: the image, then the question, padded on the left.

    Args:
        processor: processor of a model with images, stock or with a token pruner.
        images: one image per question.
        questions: what is asked, as the model was trained to be asked.

    Returns:
        `input_ids` (B, L), `attention_mask` (B, L), `pixel_values` and whatever else the processor gives.
    """
    prompts = [f"{processor.image_token} {question}" for question in questions]
    batch = processor(images=list(images), text=prompts, padding=True, padding_side="left", return_tensors="pt")
    return dict(batch)


@torch.no_grad()
def answer_questions(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    batch_size: int = 32,
    max_new_tokens: int = 8,
    progress: Callable[[int], object] | None = None,
) -> list[str]:
    """Greedy answers, one prompt per question.

    Args:
        model: a model that generates text from images; put into evaluation mode by the caller.
        processor: the model's.
        images: one image per question.
        questions: as many.
        batch_size: prompts that go through the model together.
        max_new_tokens: longest answer.
        progress: called after every batch with the number of questions it answered.

    Returns:
        The answers without special tokens, words separated by single spaces.

    Raises:
        ValueError: not as many images as questions.
    """
    if len(images) != len(questions):
        raise ValueError(f"{len(images)} images for {len(questions)} questions; expected one image per question.")
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        inputs = on_device(model, encode_prompts(processor, images[part], questions[part]))
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        replies = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.extend(" ".join(reply.split()) for reply in replies)
        if progress is not None:
            progress(len(replies))
    return answers


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which predictions are the answer, word for word (case and spacing aside).

    Raises:
        ValueError: not as many predictions as answers.
    """
    if len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions for {len(answers)} answers; expected one for each.")
    return [_plain(given) == _plain(right) for given, right in zip(predictions, answers, strict=True)]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def on_device(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs on the model's device, images in the model's dtype."""
    return {name: x.to(model.device, model.dtype if x.is_floating_point() else None) for name, x in inputs.items()}


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Tensor]) -> Any:
    """One forward pass over whole prompts, as `generate` starts: the output holds the filled cache."""
    return model(**on_device(model, inputs), use_cache=True, logits_to_keep=1)


def prefill_seconds(model: Any, inputs: dict[str, Tensor], repeats: int = 5) -> float:
    """Median time of `prefill`, vision tower and choice of tokens included. Compare only within one process.

    Args:
        model: stock or with a token pruner.
        inputs: of `encode_prompts`, by the processor in the same state.
        repeats: timed runs; one more before them is not timed.

    Returns:
        Seconds.
    """
    seconds = []
    for _ in range(repeats + 1):
        _wait_for(model.device)
        start = time.perf_counter()
        prefill(model, inputs)
        _wait_for(model.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class Cost:
    """What prompts cost before the first word of an answer.

    Args:
        visual_tokens: placeholders of the first prompt.
        prefill_seconds: median over the rounds, the whole batch.
        kv_cache_bytes: keys and values after the prefill, the whole batch.
    """

    visual_tokens: int
    prefill_seconds: float
    kv_cache_bytes: int


def compare_costs(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    configs: Sequence[TokenPrunerConfig | None],
    rounds: int = 5,
    progress: Callable[[], object] | None = None,
) -> list[Cost]:
    """Cost of the same prompts with several token pruners, measured in turns so that the times can be compared.

    Args:
        model: the model, as it is used with None.
        processor: its processor.
        images: one image per question.
        questions: one prompt each; all prompts form one batch.
        configs: token pruners; None takes model and processor as they are.
        rounds: timed prefills of every config.
        progress: called before each; what it raises ends the measurement.

    Returns:
        One cost per config.
    """
    seconds: list[list[float]] = [[] for _ in configs]
    tokens, cache = [0] * len(configs), [0] * len(configs)
    for _ in range(rounds):
        for i, config in enumerate(configs):
            if progress is not None:
                progress()
            with pruned(model, processor, config):
                inputs = encode_prompts(processor, images, questions)
                seconds[i].append(prefill_seconds(model, inputs, repeats=1))
                if not cache[i]:
                    tokens[i] = int((inputs["input_ids"][0] == processor.image_token_id).sum())
                    cache[i] = kv_cache_bytes(cache_of(prefill(model, inputs)))
    return [Cost(t, statistics.median(s), c) for t, s, c in zip(tokens, seconds, cache, strict=True)]


def pruned(model: Any, processor: Any, config: TokenPrunerConfig | None) -> contextlib.AbstractContextManager[object]:
    """`token_pruner`, or with None a context that changes nothing."""
    from hf_efficient.representation.vlm.attach import token_pruner

    return contextlib.nullcontext() if config is None else token_pruner(model, processor, config)


def kv_cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds, over all layers and the whole batch."""
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
