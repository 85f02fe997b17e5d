"""Prompts with clips for the types of the zoo that take videos."""

from typing import Any

from tests.tiny import IMAGES, image, video

from . import ZOO, takes_types

#: those whose videos are pruned
VIDEOS = (
    "llava_next_video", "gemma4", "minicpmv4_6", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "exaone4_5",
    "hyperclovax_vision_v2", "lfm3_vl", "video_llama_3", "glm46v", "glm4v_moe", "glm_ocr", "minicpm_ocr",
    "cohere_compass", "qwen4_exp", "cosmos3_omni", "muse_glimmer", "minimax_m3_vl", "ernie4_5_vl_moe",
    "gemma4_unified", "glmga", "muse_spark", "glm5_next", "dots3_note", "cosmos3_edge", "molmo2", "minicpmv4_7",
    "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker",
)  # fmt: skip
#: of these those that every run of the tests looks at
VIDEO_CORE = ("llava_next_video", "gemma4", "qwen3_vl_moe", "glm4v")
#: those of which stock takes pictures or videos in one prompt, not both
APART = (*(name for name in ZOO if name.startswith("glm")), "molmo2")
CLIPS = ((0, 4, 56, 84), (1, 6, 84, 56), (2, 4, 84, 56))  # seed, frames, height and width in pixels


def clip_rows(name: str) -> list[list[int]]:
    """A batch of prompts, by their clips."""
    if name == "llava_next_video":  # it takes clips of one length only
        return [[0], [2]]
    return [[0], [1]] if name == "molmo2" else [[0], [1, 2]]  # it takes one a prompt


def shown_clips(processor: Any, rows: list[list[int]], pictures: bool = False) -> Any:
    """What a processor makes of a prompt for each of `rows`, which name clips of `CLIPS`; a picture in front."""
    mark = processor.video_token
    if "Glm" in type(processor).__name__:
        mark = f"<|begin_of_video|>{mark}<|end_of_video|>"
    front = f"w6 {getattr(processor, 'image_placeholder_token', processor.image_token)} " * pictures
    texts = []
    for row in rows:
        marks = [f"w{3 + max(row)} w4 {mark} w2" for _ in row]
        texts.append(" ".join([front, *marks, "w7 w3 w5 w9"[: 5 + 3 * max(row)]]))
    shapes = [CLIPS[i] for row in rows for i in row]
    about = [
        {"total_num_frames": n, "fps": 2.0, "duration": n / 2, "height": h, "width": w, "frames_indices": [*range(n)]}
        for _, n, h, w in shapes
    ]
    stamps = type(processor).__name__.startswith(("Muse", "Cosmos3Edge"))  # made of what is known of a clip
    asked = {"return_metadata": True} if stamps else {}
    types = {"return_mm_token_type_ids": True} if takes_types(processor) else {}
    return processor(
        **types,
        text=texts,
        images=[image(*IMAGES[0]) for _ in rows] if pictures else None,
        videos=[video(*shape) for shape in shapes],
        videos_kwargs={"do_sample_frames": False, "video_metadata": about, **asked},
        return_tensors="pt",
        padding=True,
    )
