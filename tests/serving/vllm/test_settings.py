"""The config of a served model, and what of it vLLM cannot do. Needs no vLLM."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.serving.vllm.families import ARCHITECTURES
from hf_efficient.serving.vllm.settings import fingerprint, for_engine, served_config
from tests.local_hub import LocalHub

ROOT = Path(__file__).parents[3]
LLAVA = ARCHITECTURES["LlavaForConditionalGeneration"].family
QWEN = ARCHITECTURES["Qwen2_5_VLForConditionalGeneration"].family


def model(name: Any, **overrides: Any) -> Any:
    """As much of vLLM's `ModelConfig` as is asked."""
    return SimpleNamespace(model=str(name), revision=None, hf_config=SimpleNamespace(**overrides))


def test_a_config_is_found_in_the_folder(tmp_path: Path) -> None:
    assert served_config(model(tmp_path)) is None
    other = tmp_path / "pruned"
    TokenPrunerConfig(budget=7).save_pretrained(other)
    assert served_config(model(other)) == TokenPrunerConfig(budget=7)


def test_an_override_counts_more_and_null_is_the_stock_model(tmp_path: Path) -> None:
    TokenPrunerConfig(budget=7).save_pretrained(tmp_path)
    assert served_config(model(tmp_path, token_pruner={"budget": 9})) == TokenPrunerConfig(budget=9)
    assert served_config(model(tmp_path, token_pruner=None)) is None
    assert served_config(model("elsewhere/model", token_pruner=str(tmp_path))) == TokenPrunerConfig(budget=7)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"positions": "original"}, "without gaps"),
        ({"question_weight": 0.5}, "requests with other questions"),
        ({"adaptive": True}, "before a picture is looked at"),
        ({"llm_layers": [2]}, "one table of cache blocks"),
        ({"min_group_share": 0.5}, "min_group_share"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        for_engine(TokenPrunerConfig(**setting), LLAVA, "llava")
    assert next(name for name in setting if name != "method") in str(raised.value)


def test_positions_with_axes_stay_and_compact_ones_are_refused() -> None:
    assert for_engine(TokenPrunerConfig(positions="original"), QWEN, "qwen2_5_vl").positions == "original"
    with pytest.raises(ValueError, match="compact"):
        for_engine(TokenPrunerConfig(positions="compact"), QWEN, "qwen2_5_vl")


def test_sizes_count_with_the_methods_that_count_them_elsewhere() -> None:
    for config, sizes, centers in (
        (TokenPrunerConfig(method="itg", budget=11), True, "farthest_first"),
        (TokenPrunerConfig(method="itg", budget=11, proportional_attention=False), False, "coverage"),
        (TokenPrunerConfig(budget=11), False, None),
        (TokenPrunerConfig(budget=11, proportional_attention=True), True, None),
    ):
        served = for_engine(config, LLAVA, "llava")
        assert served.proportional_attention is sizes
        assert centers in (None, served.centers_source)


def test_configs_have_fingerprints_of_their_own() -> None:
    configs = [TokenPrunerConfig(budget=1), TokenPrunerConfig(budget=1.0), TokenPrunerConfig(method="itg", budget=1)]
    assert len({fingerprint(config) for config in configs}) == 3
    assert fingerprint(configs[0]) == fingerprint(TokenPrunerConfig(budget=1))


def test_a_config_is_found_on_the_hub(tmp_path: Path) -> None:
    code = """
from types import SimpleNamespace
from hf_efficient import TokenPrunerConfig
from hf_efficient.serving.vllm.settings import served_config
TokenPrunerConfig(budget=13).push_to_hub("tester/pruned")
models = [SimpleNamespace(model=f"tester/{n}", revision=None, hf_config=SimpleNamespace()) for n in ("pruned", "plain")]
assert served_config(models[0]) == TokenPrunerConfig(budget=13)
assert served_config(models[1]) is None
"""
    with LocalHub() as hub:
        hub.repos["tester/plain"] = {"config.json": b"{}"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=hub.environment(tmp_path), capture_output=True, text=True, cwd=ROOT
        )
    assert done.returncode == 0, done.stderr
