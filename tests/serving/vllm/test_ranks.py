"""Two ranks of tensor parallelism (gloo on a CPU): the answers, and the importance, of one process."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.serving.vllm import cases
from tests.serving.vllm.conftest import check_equal, generate, requests

CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {"method": "itg", "budget": 0.3, "importance": "cls"},  # attention over the heads of both ranks, and sizes
    "qwen2_5_vl": cases.CONFIGS["received"],
}
SEEN: list[Any] = []


def note_importance(worker: Any) -> None:
    """In a process of the engine: keep what is read of the encoder's attention from now on."""
    from hf_efficient.serving.vllm.encoder import AttentionInputs

    SEEN.clear()
    stock = getattr(AttentionInputs.importance, "stock", AttentionInputs.importance)

    def importance(self: Any, lengths: Any = None) -> Any:
        found = stock(self, lengths)
        SEEN.extend(found.flatten().tolist())
        return found

    importance.stock = stock  # type: ignore[attr-defined]
    AttentionInputs.importance = importance  # type: ignore[method-assign]


def noted(worker: Any) -> list[float]:
    """In a process of the engine: what `note_importance` kept."""
    return list(SEEN)


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("family", list(CONFIGS))
def test_two_ranks_answer_as_one_and_as_transformers(
    vllm: Any,
    engine: Callable[..., Any],
    answers: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    start: str,
) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", start)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # our own functions are sent to the workers
    config = CONFIGS[family]
    folder, expected = answers(family, {"ranks": config})
    found = {}
    for ranks, options in ((1, {}), (2, {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"})):
        llm = engine(folder, config, **options)
        llm.collective_rpc(note_importance)
        check_equal(generate(vllm, llm, requests(family)), expected["ranks"])
        found[ranks] = llm.collective_rpc(noted)
    (alone,), (first, second) = found[1], found[2]
    assert len(alone) > 0
    assert first == second  # to the bit, or ranks would keep other tokens
    assert first == pytest.approx(alone, abs=1e-6)
