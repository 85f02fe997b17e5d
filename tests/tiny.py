"""The supported families as the tests see them: a tiny model each, and prompts for it."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from tests.tiny_models import (
    gemma3,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    paligemma,
    qwen,
    smolvlm,
    video_llava,
)


def image(seed: int, height: int = 56, width: int = 56) -> Image.Image:
    """Random blobs, so that patches of one image differ from each other."""
    noise = np.random.default_rng(seed).integers(0, 255, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def video(seed: int, frames: int = 4, height: int = 56, width: int = 56) -> np.ndarray:
    """(frames, 3, height, width) uint8."""
    return np.stack([np.asarray(image(seed * 100 + i, height, width)).transpose(2, 0, 1) for i in range(frames)])


@dataclass(frozen=True)
class TinyFamily:
    """What a test needs to know of a family. `build(attention)` returns (model, processor)."""

    build: Callable[..., Any]
    image: str = "<image>"  # what stands for an image in a prompt
    video: str | None = None
    mrope: bool = False
    nested: bool = False  # the processor wants one list of images per prompt
    image_first: bool = False  # images stand at the start of the prompt


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
FAMILIES = {
    "llava": TinyFamily(llava),
    "llava_next": TinyFamily(llava_next),
    "llava_onevision": TinyFamily(llava_onevision, video="<video>", nested=True),
    "video_llava": TinyFamily(video_llava, video="<video>"),
    "qwen2_vl": TinyFamily(lambda a="sdpa": qwen("qwen2_vl", a), QWEN_IMAGE, QWEN_VIDEO, mrope=True),
    "qwen2_5_vl": TinyFamily(lambda a="sdpa": qwen("qwen2_5_vl", a), QWEN_IMAGE, QWEN_VIDEO, mrope=True),
    "qwen3_vl": TinyFamily(lambda a="sdpa": qwen("qwen3_vl", a), QWEN_IMAGE, "<|video_pad|>", mrope=True),
    "smolvlm": TinyFamily(smolvlm, video="<video>", nested=True),
    "idefics3": TinyFamily(lambda a="sdpa": smolvlm(a, "idefics3"), nested=True),
    "paligemma": TinyFamily(paligemma, image_first=True),
    "gemma3": TinyFamily(gemma3, "<start_of_image>", nested=True),
    "internvl": TinyFamily(internvl, "<IMG_CONTEXT>", video="<video>"),
}
# Two images of one prompt differ in shape, so that families with dynamic resolution give units of different sizes.
IMAGES = [(0, 112, 140), (1, 84, 112), (2, 112, 56)]


def prompts(name: str, images: list[list[int]]) -> dict[str, Any]:
    """Keyword arguments for the processor: one prompt per entry of images, holding those of IMAGES."""
    family = FAMILIES[name]
    texts = []
    for row, chosen in enumerate(images):
        marks = [family.image] * len(chosen)
        if family.image_first:
            texts.append("".join(marks) + "w1 w5 w2"[: 5 + 3 * (row > 0)])
        else:
            texts.append(" ".join([*(f"w{row + 1} w4 {mark} w2" for mark in marks), "w7 w3 w5"[: 5 + 3 * (row > 0)]]))
    shown = [[image(*IMAGES[i]) for i in chosen] for chosen in images]
    given: Any = shown if family.nested else [image for row_images in shown for image in row_images]
    return {"text": texts, "images": given or None, "return_tensors": "pt", "padding": True}


def video_prompts(name: str, rows: int = 2, images: bool = False) -> dict[str, Any]:
    """Keyword arguments for the processor: one video per prompt, and an image after it if images."""
    family = FAMILIES[name]
    after = f" {family.image} w6" if images else ""
    texts = [f"w1 {family.video} w2{after}", f"w1 w4 w5 {family.video} w3 w5{after}"][:rows]
    about = {
        "total_num_frames": 4,
        "fps": 2.0,
        "frames_indices": [0, 1, 2, 3],
        "duration": 2.0,
        "height": 56,
        "width": 56,
    }
    shown: Any = [image(*IMAGES[1]) for _ in range(rows)] if images else None
    if images and family.nested:
        shown = [[image] for image in shown]
    return {
        "text": texts,
        "videos": [video(i) for i in range(rows)],
        "images": shown,
        "video_metadata": [dict(about) for _ in range(rows)],
        "return_tensors": "pt",
        "padding": True,
    }


ROWS = [[0], [1, 2]]  # the batch most tests use: one prompt with one image, one longer prompt with two
MIXED_ROWS = [[0], [], [1, 2]]


@functools.cache
def _built(name: str, attention: str) -> Any:
    return FAMILIES[name].build(attention)


def stock(name: str, attention: str = "sdpa") -> tuple[Any, Any]:
    """A fresh (model, processor) of a family, without a pruner."""
    model, processor = copy.deepcopy(_built(name, attention))
    return model, processor


def budget(name: str) -> int:
    """A budget smaller than every unit of a tiny family."""
    return {"gemma3": 2, "qwen3_vl": 3}.get(name, 4)


def pruned(name: str, attention: str = "sdpa", **settings: Any) -> tuple[Any, Any]:
    """A fresh (model, processor) with a pruner attached, of `budget(name)` unless settings say otherwise."""
    config = TokenPrunerConfig(**{"budget": budget(name), **settings})
    return attach_token_pruner(*stock(name, attention), config=config)


def generate(model: Any, inputs: Any, **settings: Any) -> torch.Tensor:
    """The new tokens of a deterministic generation, no placeholder among them: (B, 5) unless settings say otherwise."""
    names = ("image_token_id", "video_token_id")
    placeholders = [t for name in names if (t := getattr(model.config, name, None)) is not None]
    always = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "suppress_tokens": placeholders}
    settings = {**always, **settings}
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def language_model(model: Any) -> Any:
    base = model.base_model
    return base.language_model if hasattr(base, "language_model") else base.text_model


@contextmanager
def recorded(model: Any) -> Iterator[list[dict[str, Any]]]:
    """Collects the named arguments of every call of the language model."""
    calls: list[dict[str, Any]] = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})

    handle = language_model(model).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
