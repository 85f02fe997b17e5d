"""transformers' server code (`transformers serve`): what is subclassed of it, as read in 5.23.0.

Its modules cannot be imported where FastAPI, Uvicorn or openai is missing (names are then undefined in them), so that
these tables are joined to those of transformers only where all three are there.
"""

from __future__ import annotations

from importlib.util import find_spec

from hf_efficient.extras import MissingExtra

_CHAT = "transformers.cli.serving.chat_completion:ChatCompletionHandler"
_UTILS = "transformers.cli.serving.utils"
_PROMPT = ("self", "request_id", "model", "processor", "model_id", "inputs", "gen_config", "gen_manager", "tools")
NEEDED = ("fastapi", "uvicorn", "openai")
#: "module:name" -> parameters, of what is overridden.
OVERRIDDEN = {
    "transformers.cli.serving.model_manager:ModelManager.load_model_and_processor": (
        "self", "model_id_and_revision", "progress_callback", "tqdm_class", "gguf_file",
    ),
    f"{_CHAT}._build_generation_config": ("self", "body", "model_generation_config", "use_cb"),
    f"{_UTILS}:GenerateManager.submit": ("self", "fn", "args", "kwargs"),
    f"{_UTILS}:GenerateManager.async_submit": ("self", "fn", "args", "kwargs"),
}  # fmt: skip
#: "module:name" -> parameters, of what is called.
CALLED = {
    "transformers.cli.serving.model_manager:ModelManager": (
        "device", "dtype", "trust_remote_code", "attn_implementation", "continuous_batching", "quantization",
        "model_timeout", "force_model",
    ),
    _CHAT: ("model_manager", "generation_state", "chat_template_kwargs"),
    f"{_CHAT}._streaming": _PROMPT,
    f"{_CHAT}._non_streaming": _PROMPT,
    f"{_CHAT}._build_chunk_sse": (
        "self", "request_id", "content", "model", "role", "finish_reason", "tool_calls", "usage", "reasoning_content",
    ),
    f"{_UTILS}:GenerateManager": (),
    f"{_UTILS}:GenerationState": ("continuous_batching", "compile", "cb_config"),
}  # fmt: skip
#: "module:name" -> words in its source.
IN_SOURCE = {
    f"{_UTILS}:GenerateManager.generate_streaming": ("self.submit", "._tokenizer"),
    f"{_UTILS}:GenerateManager.generate_non_streaming": ("self.async_submit",),
    f"{_CHAT}._streaming": ('{{"error": "', "streamer.cancel()"),
}


def is_installed() -> bool:
    """Whether all that the server code needs is there."""
    return all(find_spec(name) is not None for name in NEEDED)


def check_installed() -> None:
    """Raise MissingExtra unless `is_installed`: transformers' own error would be of an undefined name."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise MissingExtra(name)
