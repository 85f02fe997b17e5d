"""Engines in this process, and what transformers answers to the same prompts in an environment of its own."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.serving.vllm import cases

ROOT = Path(__file__).parents[3]
#: An interpreter whose transformers is >= 5.23; `make test-serving` names that of the other environment.
PYTHON = os.environ.get("HF_EFFICIENT_REFERENCE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: a start costs seconds, not minutes
    "TORCHDYNAMO_DISABLE": "1",  # some small functions are compiled in spite of enforce_eager
}  # fmt: skip
if find_spec("vllm") is not None:  # its environment has no other tests to run
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "vllm" in getattr(item, "fixturenames", ()):
            item.add_marker("serving")


@pytest.fixture(scope="session")
def vllm() -> Any:
    return pytest.importorskip("vllm", reason="vLLM is not installed here: make test-serving")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="session")
def answers(work: Path) -> Callable[..., Any]:
    """Folder of a family's tiny model, and transformers' answers to its prompts under each config."""

    def ask(family: str, configs: dict[str, Any], kind: str = "pictures") -> tuple[Path, dict[str, Any]]:
        folder = work / family
        job = {"family": family, "folder": str(folder), "configs": configs, "kind": kind}
        digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:12]
        given, made = work / f"{digest}.json", work / f"{digest}-answers.json"
        if not made.exists():
            given.write_text(json.dumps(job))
            command = [PYTHON, "-m", "tests.serving.vllm.reference", str(given), str(made)]
            around = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=around)
            assert done.returncode == 0, done.stderr[-3000:]
        return folder, json.loads(made.read_text())

    return ask


@pytest.fixture
def engine(vllm: Any) -> Iterator[Callable[..., Any]]:
    """Makes an engine for a folder and a pruner's config (None: as it is), and takes it away again."""
    made: list[Any] = []

    def close() -> None:
        """Before another is made, also where a failed test still holds this one: engines of a process share groups."""
        from vllm.distributed import cleanup_dist_env_and_memory

        while made:
            made.pop().llm_engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()

    def make(folder: Path | str, config: Any = None, **options: Any) -> Any:
        settings = {
            "model": str(folder), "dtype": "float32", "max_model_len": 512, "enforce_eager": True, "max_num_seqs": 8,
            "limit_mm_per_prompt": {"image": 3, "video": 0}, "distributed_executor_backend": "uni", "max_logprobs": 5,
            "hf_overrides": {} if config is None else {"token_pruner": config},
        }  # fmt: skip
        close()
        made.append(vllm.LLM(**(settings | options)))
        return made[-1]

    yield make
    close()
    gc.collect()


def requests(family: str, kind: str = "pictures") -> list[dict[str, Any]]:
    """The prompts as vLLM takes them."""
    if kind == "clips":
        return [
            {"prompt": text, "multi_modal_data": {"video": clip_of(family, shape)}}
            for text, (shape,) in cases.prompts(family, kind)
        ]
    return [
        {"prompt": text, "multi_modal_data": {"image": cases.pictures(sizes)}}
        for text, sizes in cases.prompts(family, kind)
    ]


def clip_of(family: str, shape: tuple[int, int, int]) -> Any:
    """A video as vLLM takes it, with its metadata where the family's processor asks for them."""
    frames = cases.clip(*shape)
    if family in ("qwen2_5_vl", "qwen3_vl"):
        known = {"fps": 24.0, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
        return [
            (frames, {**known, "duration": len(frames) / 24.0, "video_backend": "opencv", "do_sample_frames": False})
        ]
    return [frames]


def generate(vllm: Any, llm: Any, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As transformers' answers are written."""
    # not min_tokens: vLLM then never takes the end of a text, which transformers is not told of
    greedy = vllm.SamplingParams(temperature=0, max_tokens=cases.TOKENS, ignore_eos=True, logprobs=1)
    found = []
    for output in llm.generate(asked, greedy, use_tqdm=False):
        tokens = list(output.outputs[0].token_ids)
        logprobs = [one[t].logprob for one, t in zip(output.outputs[0].logprobs, tokens)]
        found.append({"length": len(output.prompt_token_ids), "tokens": tokens, "logprobs": logprobs})
    return found


def check_equal(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Lengths and tokens are equal, log-probabilities within 1e-4."""
    assert [one["length"] for one in got] == [one["length"] for one in expected]
    assert [one["tokens"] for one in got] == [one["tokens"] for one in expected]
    for one, other in zip(got, expected):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)
