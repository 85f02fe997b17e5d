"""The config of a served model, and what of it vLLM cannot do. Needs no vLLM."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.serving.vllm.budgets import NAME, as_rows, check_fewer, field, taken, with_budget
from hf_efficient.serving.vllm.families import ARCHITECTURES
from hf_efficient.serving.vllm.settings import fingerprint, for_engine, served_config
from hf_efficient.serving.vllm.sizes import SizedHeads, TokenSizes, width_for, with_sizes
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


def test_budgets_of_requests_reach_the_model_as_they_were_asked() -> None:
    for asked in (1, 7, 1.0, 0.1):
        rows = as_rows(with_budget(TokenPrunerConfig(), {NAME: asked}).budget, 2)
        plain, budgets = taken({"pixel_values": 0, field("image"): rows})
        assert plain == {"pixel_values": 0}
        assert [(b, type(b)) for b in budgets or ()] == [(asked, type(asked))] * 2
        assert taken({field("video"): list(rows)})[1] == budgets  # of pictures that were not put together
    assert taken({"pixel_values": 0}) == ({"pixel_values": 0}, None)


@pytest.mark.parametrize("asked", [0, -1, 1.5, True, "all", None, [4]])
def test_a_budget_that_is_none_is_refused(asked: Any) -> None:
    with pytest.raises(ValueError, match="token_budget="):
        with_budget(TokenPrunerConfig(), {NAME: asked})


def test_a_request_cannot_keep_more_than_the_engine_counts_with() -> None:
    most = TokenPrunerConfig(budget=10)
    assert check_fewer(with_budget(most, {NAME: 0.5}), most, 20) == 10
    with pytest.raises(ValueError, match="keeps 11 of 22 tokens, and the engine was started for 10 at most"):
        check_fewer(with_budget(most, {NAME: 0.5}), most, 22)


def test_heads_get_the_next_width_that_a_backend_takes() -> None:
    def backend(name: str, takes: Any) -> Any:
        return SimpleNamespace(get_name=lambda: name, supports_head_size=takes)

    cpu = backend("CPU_ATTN", lambda width: width in (32, 64, 80, 96, 112, 128, 160))
    flash = backend("FLASH_ATTN", lambda width: width % 8 == 0 and width <= 256)
    assert [width_for(cpu, own) for own in (32, 64, 128)] == [64, 80, 160]
    assert [width_for(flash, own) for own in (64, 126, 128)] == [72, 128, 136]
    for other, own in ((flash, 256), (backend("TRITON_ATTN", lambda width: True), 64)):
        with pytest.raises(ValueError, match="proportional_attention=False"):
            width_for(other, own)


class Layer:
    """As much of vLLM's attention as sizes ask: one prompt, causal, heads as wide as the layer says."""

    def __init__(self, heads: int, width: int) -> None:
        self.num_heads = self.num_kv_heads = heads
        self.head_size, self.impl = width, SimpleNamespace(scale=0.3)

    def forward(self, query: Any, key: Any, value: Any) -> Any:
        q, k, v = (
            x.unflatten(1, (self.num_heads, self.head_size)).transpose(0, 1).float() for x in (query, key, value)
        )
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.impl.scale)
        return found.transpose(0, 1).flatten(1)


class Sized(SizedHeads, Layer):
    pass


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)])
def test_wider_heads_count_a_key_as_often_as_it_stands_for_tokens(dtype: torch.dtype, within: float) -> None:
    """Against copies: a key that counts n times is n keys."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2 * 8).to(dtype)
    sizes = torch.tensor([1, 7, 300, 1])
    layer = Sized(2, 16)
    layer.own, layer.log_sizes = 8, torch.cat([sizes.float().log(), torch.zeros(5)])
    found = layer.forward(*x)[-1]
    copied = Layer(2, 8).forward(*(part.repeat_interleave(sizes, dim=0) for part in x))[-1]
    torch.testing.assert_close(found, copied.float(), atol=within, rtol=0)


def test_a_token_that_stands_for_none_is_hidden_and_nothing_is_not_a_number() -> None:
    sizes = TokenSizes.__new__(TokenSizes)
    sizes.log_sizes = torch.zeros(6)
    features = with_sizes([torch.ones(3, 2, dtype=torch.bfloat16)], [torch.tensor([0.0, 1.0, 16383.0])])
    plain = sizes.take(features, torch.tensor([False, True, True, False, True]))
    assert plain[0].shape == (3, 2)
    assert sizes.log_sizes.tolist() == pytest.approx([0, -100, 0, 0, math.log(16383), 0])
    assert sizes.take([], None) == []
    assert not sizes.log_sizes.any()


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
