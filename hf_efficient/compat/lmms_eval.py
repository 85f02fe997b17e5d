"""lmms-eval: what its model plug-ins stand on, as read in 0.7.3. Not in the suite's environment (docs/serving.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: "module:name" -> parameters, of what is overridden.
OVERRIDDEN = {
    "lmms_eval.api.model:lmms.loglikelihood": ("self", "requests"),
    "lmms_eval.api.model:lmms.generate_until": ("self", "requests"),
    "lmms_eval.api.model:lmms.generate_until_multi_round": ("self", "requests"),
}
#: "module:name" -> parameters, of what is called.
CALLED = {
    "lmms_eval.api.model:lmms._resolve_system_prompt": ("value",),
    "lmms_eval.api.model:lmms._apply_system_prompt": ("self", "messages", "system_prompt"),
    "lmms_eval.protocol:ChatMessages.to_hf_messages": ("self", "video_kwargs", "image_kwargs"),
    "lmms_eval.models.registry_v2:ModelManifest": ("model_id", "simple_class_path", "chat_class_path", "aliases"),
    "lmms_eval.models.model_utils.gen_metrics:log_metrics": (
        "total_elapsed_time", "total_gen_tokens", "avg_speed", "additional_metrics",
    ),
    "lmms_eval.api.instance:GenerationResult": ("text", "token_counts"),
}  # fmt: skip
#: "module:name" -> words in its source, where a name exists on instances alone.
IN_SOURCE = {"lmms_eval.api.model:lmms": ("_rank", "_world_size", "cache_hook", "task_dict")}


def model_base() -> type:
    """The class of all models; where lmms-eval is not installed an empty one, so that ours can still be read."""
    try:
        from lmms_eval.api.model import lmms
    except ModuleNotFoundError:
        return object
    base: type = lmms
    return base


def chat_of(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages of a task as chat templates take them."""
    from lmms_eval.protocol import ChatMessages

    chat: list[dict[str, Any]] = ChatMessages(messages=list(messages)).to_hf_messages()
    return chat


def result_of(text: str, tokens: int) -> Any:
    """An answer, as the evaluator takes it."""
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    return GenerationResult(text=text, token_counts=TokenCounts(output_tokens=tokens))


def logged(requests: int, tokens: int, seconds: float, **more: float) -> None:
    """Put what a run took into its results."""
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    log_metrics(
        total_elapsed_time=seconds,
        total_gen_tokens=tokens,
        avg_speed=tokens / seconds if seconds else 0.0,
        additional_metrics={"total_requests": requests, **more},
    )
