"""Tiny models with random weights, and their real processors, of types that have no file of their own."""

import copy
import functools
from collections.abc import Callable
from typing import Any

from tests.tiny import IMAGES, image

from . import llava_kin, newer, newest, qwen_kin, tiled

#: name of a case, the model's type but for combinations of parts, -> builder of (model, processor)
ZOO: dict[str, Callable[[], Any]] = {
    builder.__name__: builder
    for builder in (
        llava_kin.mistral3, llava_kin.pixtral, llava_kin.lighton_ocr, llava_kin.vipllava, llava_kin.llava_next_video,
        llava_kin.deepseek_vl, llava_kin.janus, tiled.aya_vision, tiled.cohere2_vision, tiled.lfm2_vl, tiled.gemma4,
        tiled.minicpmv4_6, qwen_kin.qwen3_vl_moe, qwen_kin.qwen3_5, qwen_kin.qwen3_5_moe, qwen_kin.glm4v,
        qwen_kin.exaone4_5, qwen_kin.video_llama_3, qwen_kin.kimi_k25, newer.hyperclovax_vision_v2, newer.lfm3_vl,
        newer.glm46v, newer.glm4v_moe, newer.glm_ocr, newer.mistral_large4, newer.qianfan_ocr,
        newer.minicpm_ocr, newer.paddleocr_vl, newer.deepseek_vl_hybrid, newer.ovis2, newer.minicpmv4_7,
        newest.cohere_compass, newest.qwen4_exp, newest.cosmos3_omni, newest.muse_glimmer, newest.aria,
        newest.minimax_m3_vl, newest.ernie4_5_vl_moe, newest.gemma4_unified, newest.glmga,
        newest.muse_spark, newest.chameleon,
    )
}  # fmt: skip
#: those that every run of the tests looks at, one of each kind of layout and positions; the others are slow tests
CORE = ("mistral3", "pixtral", "aya_vision", "lfm2_vl", "gemma4", "glm4v", "qwen3_vl_moe", "qwen3_5", "qianfan_ocr")
#: those that do not keep the rules
REFUSED = ("minicpmv4_7", "chameleon")


@functools.cache
def _built(name: str) -> Any:
    return ZOO[name]()


def stock(name: str) -> tuple[Any, Any]:
    """A fresh (model, processor), without a pruner."""
    model, processor = copy.deepcopy(_built(name))
    return model, processor


def shown(processor: Any, rows: list[list[int]]) -> Any:
    """What a processor makes of a prompt for each of `rows`, which name pictures of `tests.tiny.IMAGES`."""
    mark = getattr(processor, "image_placeholder_token", processor.image_token)
    texts, pictures = [], [[image(*IMAGES[i]) for i in row] for row in rows]
    for row in rows:
        marks = [f"w{3 + max(row)} w4 {mark} w2" for _ in row]
        texts.append(" ".join([*marks, "w7 w3 w5 w9"[: 5 + 3 * max(row)]]))
    try:
        return processor(text=texts, images=[one for row in pictures for one in row], return_tensors="pt", padding=True)
    except (ValueError, IndexError):  # it wants a list for every prompt
        return processor(text=texts, images=pictures, return_tensors="pt", padding=True)


def kept_columns(ids: Any, token: int, last: list[Any]) -> list[list[int]]:
    """Columns of a full prompt that stay: no placeholder of a token dropped, no text within a unit in several runs."""
    flags = iter([i in unit.indices.tolist() for unit in last for i in range(unit.num_tokens)])
    ends = iter([i in (0, unit.num_tokens - 1) for unit in last for i in range(unit.num_tokens)])
    rows = []
    for row in ids.tolist():
        kept: list[int] = []
        inside = False
        for column, one in enumerate(row):
            if one == token:
                if next(ends):
                    inside = not inside
                kept += [column] if next(flags) else []
            elif not inside:
                kept.append(column)
        rows.append(kept)
    return rows
