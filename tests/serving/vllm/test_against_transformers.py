"""vLLM with the plug-in against transformers with the pruner attached: `make test-serving`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_efficient.compat.names import changes
from hf_efficient.representation.config import TokenPrunerConfig
from tests.serving.vllm import cases
from tests.serving.vllm.conftest import check_equal, generate, requests

Answers = Callable[..., Any]
Engine = Callable[..., Any]
#: families whose processor in vLLM does not know of the other pictures of a prompt
APART = ("llava_onevision",)
WITHOUT_ATTENTION = ("smolvlm",)
SEVERAL = [f for f in cases.MARKS if f not in APART]


def kind_of(family: str) -> str:
    return "alone" if family in APART else "pictures"


def configs_of(family: str) -> dict[str, Any]:
    return {
        name: {**config, "importance": "distinct"} if family in WITHOUT_ATTENTION and name == "by attention" else config
        for name, config in cases.CONFIGS.items()
        if not (family in WITHOUT_ATTENTION and name == "received")
    }


def test_names_of_vllm_are_as_they_were_read(vllm: Any) -> None:
    assert changes("vllm") == []


@pytest.mark.parametrize("name", list(cases.CONFIGS))
@pytest.mark.parametrize("family", list(cases.MARKS))
def test_pictures(vllm: Any, engine: Engine, answers: Answers, family: str, name: str) -> None:
    """Mixed pictures in one batch, one to three in a prompt."""
    configs = configs_of(family)
    if name not in configs:
        pytest.skip("its attention cannot be read")
    folder, expected = answers(family, configs, kind_of(family))
    llm = engine(folder, configs[name])
    check_equal(generate(vllm, llm, requests(family, kind_of(family))), expected[name])


@pytest.mark.parametrize("name", ["id_pruner", "itg", "by attention"])
@pytest.mark.parametrize("family", [f for f, (_, video) in cases.MARKS.items() if video])
def test_videos(vllm: Any, engine: Engine, answers: Answers, family: str, name: str) -> None:
    configs = {one: cases.CONFIGS[one] for one in ("id_pruner", "itg", "by attention")}
    folder, expected = answers(family, configs, "clips")
    llm = engine(folder, configs[name], limit_mm_per_prompt={"image": 0, "video": 1})
    check_equal(generate(vllm, llm, requests(family, "clips")), expected[name])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_prefill_in_steps_of_16_and_without_the_prefix_cache(
    vllm: Any, engine: Engine, answers: Answers, family: str
) -> None:
    config = cases.CONFIGS["itg"]
    folder, expected = answers(family, configs_of(family))
    llm = engine(folder, config, max_num_batched_tokens=16, enable_chunked_prefill=True, enable_prefix_caching=False)
    check_equal(generate(vllm, llm, requests(family)), expected["itg"])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_prompt_found_in_the_prefix_cache_is_answered_alike(
    vllm: Any, engine: Engine, answers: Answers, family: str
) -> None:
    """Prompts long enough to fill a block of the cache, of 32 tokens."""
    config = {"method": "itg", "budget": 0.9}
    folder, expected = answers(family, {"most": config})
    llm = engine(folder, config, block_size=32)
    for _ in range(2):
        check_equal(generate(vllm, llm, requests(family)), expected["most"])
    found = llm.generate(requests(family), vllm.SamplingParams(max_tokens=1), use_tqdm=False)
    assert sum(one.num_cached_tokens or 0 for one in found) >= 32


def test_requests_that_are_preempted_are_answered_alike(vllm: Any, engine: Engine, answers: Answers) -> None:
    folder, expected = answers("qwen2_5_vl", configs_of("qwen2_5_vl"))
    config = cases.CONFIGS["id_pruner"]
    llm = engine(
        folder, config, block_size=32, num_gpu_blocks_override=4, enable_prefix_caching=False, max_model_len=96
    )
    check_equal(generate(vllm, llm, requests("qwen2_5_vl")), expected["id_pruner"])


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_requests_may_ask_for_fewer_tokens(vllm: Any, engine: Engine, answers: Answers, family: str) -> None:
    """Of the same pictures in one batch, others keep as many as the engine's config says."""
    config = {"method": "itg", "budget": 0.5}
    asked = {"whole": config, "share": config | {"budget": 0.2}, "count": config | {"budget": 3}}
    folder, expected = answers(family, asked)
    llm = engine(folder, config)
    given: list[Any] = [
        {**one, "mm_processor_kwargs": {"token_budget": values["budget"]}} if name != "whole" else one
        for name, values in asked.items()
        for one in requests(family)
    ]
    for _ in range(2):  # the second time pictures are found in the caches
        check_equal(generate(vllm, llm, given), [answer for name in asked for answer in expected[name]])
    for budget, message in ((0.6, "was started for"), (0, "expected a whole number"), ("all", "expected a whole")):
        with pytest.raises(ValueError, match=message):
            generate(vllm, llm, [{**given[0], "mm_processor_kwargs": {"token_budget": budget}}])


def test_a_saved_pruner_is_served_and_null_serves_the_stock_model(
    vllm: Any, engine: Engine, answers: Answers, tmp_path: Path
) -> None:
    folder, expected = answers("llava", {"stock": None, "id_pruner": cases.CONFIGS["id_pruner"]})
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    TokenPrunerConfig(**cases.CONFIGS["id_pruner"]).save_pretrained(tmp_path)
    check_equal(generate(vllm, engine(tmp_path), requests("llava")), expected["id_pruner"])
    stock = engine(tmp_path, hf_overrides={"token_pruner": None})
    check_equal(generate(vllm, stock, requests("llava")), expected["stock"])


@pytest.mark.parametrize(
    ("family", "config", "options", "message"),
    [
        ("llava", {"llm_layers": [1]}, {}, "table of cache blocks"),
        ("llava", {"budget": 4}, {"mm_processor_kwargs": {"token_budget": 2}}, "that of the pruner's config"),
        ("llava", {"method": "itg", "budget": 4}, {"kv_cache_dtype": "fp8"}, "do not hold a token's size"),
        ("llava", {"budget": 4}, {"model_impl": "transformers"}, "cannot be served with a token pruner"),
        ("smolvlm", {"method": "scope"}, {}, "importance='distinct'"),
    ],
)
def test_refusals(
    vllm: Any, engine: Engine, answers: Answers, family: str, config: Any, options: dict[str, Any], message: str
) -> None:
    folder, _ = answers(family, {})
    with pytest.raises(Exception, match=message):
        engine(folder, config, **options)


def test_videos_of_another_scale_than_pictures(vllm: Any, engine: Engine, answers: Answers, tmp_path: Path) -> None:
    """vLLM takes the scale of pictures for both, unless its processor does the scaling."""
    config = cases.CONFIGS["id_pruner"]
    folder, expected = answers("qwen3_vl", {"id_pruner": config}, "clips")
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"] |= {"image_mean": [0.4, 0.4, 0.4]}
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1, "video": 1}}
    with pytest.raises(ValueError, match="mm_device_do_normalize=False"):
        generate(vllm, engine(tmp_path, config, **options), requests("qwen3_vl", "clips"))
    llm = engine(tmp_path, config, mm_device_do_normalize=False, **options)
    check_equal(generate(vllm, llm, requests("qwen3_vl", "clips")), expected["id_pruner"])


def test_features_in_place_of_a_picture_stay_as_they_are(vllm: Any, engine: Engine, answers: Answers) -> None:
    import torch

    folder, _ = answers("llava", {})
    llm = engine(folder, cases.CONFIGS["id_pruner"], enable_mm_embeds=True)
    features = torch.randn(1, 9, json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"])
    asked = {"prompt": cases.prompt("<image>"), "multi_modal_data": {"image": features}}
    assert generate(vllm, llm, [asked])[0]["length"] == 7 + 9
