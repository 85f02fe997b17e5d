"""Tiny models with random weights, and their real processors, of types that have no file of their own."""

import copy
import functools
import os
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any

import pytest
import torch
import transformers as hf

from tests.tiny import IMAGES, image

from . import documents, latest, llava_kin, newer, newest, others, qwen_kin, tiled

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
        newest.muse_spark, newest.chameleon, documents.got_ocr2, documents.deepseek_ocr2, documents.unlimited_ocr,
        documents.step3p7, documents.granite_docling, documents.granite4_vision, latest.glm5_next, latest.dots3_note,
        latest.cosmos3_edge, latest.inkling2, latest.inkling_mm_model, latest.qwen2_5_omni_thinker,
        latest.qwen3_omni_moe_thinker, latest.hunyuan_vl, others.emu3, others.molmo2,
        others.perception_lm, others.fast_vlm, others.llama4,
    )
}  # fmt: skip
#: those that every run of the tests looks at, one of each kind of layout and positions
CORE = ("mistral3", "pixtral", "aya_vision", "lfm2_vl", "gemma4", "glm4v", "qwen3_vl_moe", "qwen3_5", "qianfan_ocr")
#: in how many runs on as many days all others are looked at; `ZOO_DAY` picks the day, for today's anew
SLICES = 28
DAY = int(os.environ.get("ZOO_DAY", date.today().toordinal())) % SLICES
#: processors whose marks stand between two others in a prompt
ENCLOSED = (hf.Qwen2_5OmniProcessor, hf.Qwen3OmniMoeProcessor, hf.HunYuanVLProcessor)
#: those that do not keep the rules
REFUSED = ("chameleon", "granite4_vision", "inkling_mm_model", "emu3", "llama4", "hunyuan_vl")


def parameters(names: Iterable[str], core: Iterable[str] = CORE) -> list[Any]:
    """Cases of a test, slow tests but for those of `core` and the slice of the day."""
    today = set(list(ZOO)[DAY::SLICES]) | set(core)
    return [pytest.param(name, marks=() if name in today else pytest.mark.slow) for name in names]


@functools.cache
def _built(name: str) -> Any:
    return ZOO[name]()


def stock(name: str) -> tuple[Any, Any]:
    """A fresh (model, processor), without a pruner."""
    model, processor = copy.deepcopy(_built(name))
    return model, processor


def takes_types(processor: Any) -> bool:
    """Whether the model wants the kinds of a prompt's tokens; MiniMax M3's processor names them, its model has none."""
    return "mm_token_type_ids" in processor.model_input_names and not type(processor).__name__.startswith("MiniMaxM3")


def shown(processor: Any, rows: list[list[int]]) -> Any:
    """What a processor makes of a prompt for each of `rows`, which name pictures of `tests.tiny.IMAGES`."""
    mark = getattr(processor, "image_placeholder_token", processor.image_token)
    for start, end in (("vision_bos_token", "vision_eos_token"), ("image_start_token", "image_end_token")):
        if isinstance(processor, ENCLOSED) and hasattr(processor, start):
            mark = f"{getattr(processor, start)}{mark}{getattr(processor, end)}"
    texts, pictures = [], [[image(*IMAGES[i]) for i in row] for row in rows]
    for row in rows:
        marks = [f"w{3 + max(row)} w4 {mark} w2" for _ in row]
        texts.append(" ".join([*marks, "w7 w3 w5 w9"[: 5 + 3 * max(row)]]))
    settings: dict[str, Any] = {"text": texts, "return_tensors": "pt", "padding": True}
    if takes_types(processor):
        settings["return_mm_token_type_ids"] = True
    try:
        return processor(images=[one for row in pictures for one in row], **settings)
    except (ValueError, IndexError):  # it wants a list for every prompt
        return processor(images=pictures, **settings)


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


def check_seen(
    stock_calls: list[dict[str, Any]], calls: list[dict[str, Any]], columns: list[int], length: int, original: bool
) -> None:
    """The language model was given the tokens of these columns of a prompt, at their places or at those that follow.

    Args:
        stock_calls: of the stock language model, one prompt, then a token a call.
        calls: of the pruned pair's.
        columns: of the stock prompt, that are kept.
        length: of the stock prompt.
        original: whether kept tokens keep their positions along one axis; along several they do.
    """
    first, ours = stock_calls[0], calls[0]
    assert torch.allclose(first["inputs_embeds"][:, columns], ours["inputs_embeds"], atol=1e-5)
    places = torch.arange(length)[None]
    before = places if first.get("position_ids") is None else first["position_ids"]  # where it does not say, by place
    stays = before.dim() > 2 or original
    expected = before[..., columns if stays else slice(len(columns))][-3:]
    found = ours.get("position_ids")
    assert torch.equal(expected, (places[:, : len(columns)] if found is None else found)[-3:])
    for now, then in zip(calls[1:], stock_calls[1:], strict=True):
        if stays and then.get("position_ids") is not None:
            assert torch.equal(now["position_ids"][-3:], then["position_ids"][-3:])
