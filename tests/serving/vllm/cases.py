"""Prompts, pictures and configs that transformers and vLLM are both asked: no library but numpy and Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_CLIP = "<|vision_start|><|video_pad|><|vision_end|>"
#: family -> what stands for a picture in a prompt, and for a video where vLLM takes one
MARKS: dict[str, tuple[str, str | None]] = {
    "llava": ("<image>", None),
    "llava_next": ("<image>", None),
    "llava_onevision": ("<image>", "<video>"),
    "qwen2_vl": (QWEN, QWEN_CLIP),
    "qwen2_5_vl": (QWEN, QWEN_CLIP),
    "qwen3_vl": (QWEN, QWEN_CLIP),
    "internvl": ("<IMG_CONTEXT>", None),
    "gemma3": ("<start_of_image>", None),
    "smolvlm": ("<image>", None),
}
#: width and height of the pictures of each prompt
SIZES = [[(112, 112)], [(56, 168)], [(168, 56)], [(140, 196), (84, 56)], [(56, 168), (196, 112), (112, 112)]]
#: of those families whose processor in vLLM does not know of the other pictures of a prompt
ALONE = [[(112, 112)], [(56, 168)], [(168, 56)], [(140, 196)], [(196, 112)]]
#: frames, width and height of the videos of each prompt
CLIPS = [(4, 56, 112), (2, 112, 56), (6, 84, 84)]
TOKENS = 8

CONFIGS: dict[str, dict[str, Any]] = {
    "id_pruner": {"method": "id_pruner", "budget": 5},
    "itg": {"method": "itg", "budget": 0.3},
    "without sizes": {"method": "itg", "budget": 0.3, "proportional_attention": False},
    "by attention": {"method": "scope", "budget": 0.4},
    "received": {"method": "id_pruner", "budget": 4, "importance": "received", "importance_weight": 0.5},
}


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Blocks of noise, so that patches of one picture differ from each other."""
    noise = np.random.default_rng(seed).integers(0, 255, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def pictures(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """One for each size, other ones for other lists of sizes."""
    return [picture(sum(map(sum, sizes)) + i, *size) for i, size in enumerate(sizes)]


def clip(frames: int, width: int, height: int) -> np.ndarray:
    """(frames, height, width, 3) uint8."""
    return np.stack([np.asarray(picture(frames * 1000 + i, width, height)) for i in range(frames)])


def prompt(mark: str, count: int = 1) -> str:
    """Words around so many pictures or videos."""
    return "w1 w2 " + f"{mark} w3 " * count + "w4 w5 w6 w7"


def prompts(family: str, kind: str = "pictures") -> list[tuple[str, list[Any]]]:
    """Text and sizes of every prompt; `kind`: "pictures", "alone" (one each) or "clips"."""
    mark, video = MARKS[family]
    if kind == "clips":
        assert video is not None
        return [(prompt(video), [shape]) for shape in CLIPS]
    return [(prompt(mark, len(sizes)), sizes) for sizes in (SIZES if kind == "pictures" else ALONE)]
