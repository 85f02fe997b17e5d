"""Tensor and data parallelism: the answers of one process."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.serving.vllm import cases
from tests.serving.vllm.conftest import check_equal, generate, requests

CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {"method": "itg", "budget": 0.3, "importance": "cls"},  # attention over the heads of both ranks, and sizes
    "qwen2_5_vl": cases.CONFIGS["received"],
}


@pytest.mark.parametrize("family", list(CONFIGS))
def test_two_ranks_of_tensor_parallelism(
    vllm: Any, engine: Callable[..., Any], answers: Callable[..., Any], family: str
) -> None:
    config = CONFIGS[family]
    folder, expected = answers(family, {"ranks": config})
    llm = engine(folder, config, tensor_parallel_size=2, distributed_executor_backend="mp")
    check_equal(generate(vllm, llm, requests(family)), expected["ranks"])
