"""Engines of vLLM in this process, as the benchmarks of serving use them."""

import os
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1",
}  # fmt: skip
os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})  # read when it is imported


def close_engine(llm: Any) -> None:
    """End an engine of this process, whose cache and groups another one would find taken."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def make_engine(folder: str | os.PathLike[str] | Path, pruner: dict[str, Any] | None, **options: Any) -> Any:
    """vLLM's `LLM` of a folder, in float32 and in this process.

    Args:
        folder: of the model.
        pruner: a config, None for the stock model.
        options: of `LLM`.
    """
    from vllm import LLM

    settings = {
        "model": str(folder), "dtype": "float32", "max_model_len": 1024, "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 1}, "distributed_executor_backend": "uni",
        "hf_overrides": {"token_pruner": pruner},
    }  # fmt: skip
    return LLM(**(settings | options))
