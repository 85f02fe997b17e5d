"""Importance of an encoder is its own eager attention, or is not offered: tried once, and nothing is left of it."""

import logging
import sys
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.representation.vlm.families import towers, trial
from hf_efficient.representation.vlm.families.watch import Watch, bias_of, importance
from tests.representation.vlm.families.encoders import ENCODERS, LAYER, WHOLE, eager_attention, packed
from tests.tiny import ROWS, prompts, stock


@pytest.fixture(autouse=True)
def untried() -> Any:
    trial._TRIED.clear()
    yield
    trial._TRIED.clear()


def offers(encoder: Any, run: Any) -> Any:
    return trial.offers(encoder, LAYER, run)


def eager_maps(name: str) -> list[Tensor]:
    """The maps (heads, tokens, tokens) of the pictures of an encoder, where each looks at itself."""
    made = ENCODERS[name]
    encoder = made.make("eager")
    with eager_attention(towers.attention_layers(encoder)[LAYER]) as weights, torch.no_grad():
        output = made.run(encoder, output_attentions=name != "llama4")  # which stock cannot collect there
    if len(getattr(output, "attentions", None) or ()) == 3 and made.run is not packed:  # as the encoder tells it
        assert torch.equal(output.attentions[LAYER], weights[0])
    rows = [row for layer in weights for row in layer]
    return [rows[row][:, tokens, tokens] for row, tokens in made.looks or WHOLE]


@pytest.mark.parametrize("name", ENCODERS)
def test_importance_is_the_attention_that_the_encoder_itself_gives(name: str) -> None:
    made, maps = ENCODERS[name], eager_maps(name)
    encoder = made.make()
    assert offers(encoder, made.run) == (("cls", "received") if made.cls_token else ("received",), None)
    for source in ("cls", "received"):
        with Watch(towers.attention_layers(encoder)[LAYER], source) as watch, torch.no_grad():
            made.run(encoder)
        found = watch.result()
        if name == "siglip2":
            assert (found[1, 8:] == 0).all() or source == "cls"
            found = torch.cat([found[0], found[1, :8]])
        if source == "cls" and not made.cls_token:
            continue
        expected = [m[:, 0].mean(0) if source == "cls" else m.mean((0, 1)) for m in maps]
        assert torch.allclose(found.flatten(), torch.cat(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "pixtral", "qwen2_5_vl", "siglip2"])
def test_encoders_in_sixteen_bits_pass(name: str) -> None:
    made = ENCODERS[name]
    assert offers(made.make().to(torch.bfloat16), made.run)[1] is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert offers(made.make(), made.run)[1] is None


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    angle = 0.3 * torch.arange(x.shape[2]).unsqueeze(-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], -1)


def capped(stock: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
    logits = q @ k.transpose(-1, -2) * scaling
    weights = (5 * (logits / 5).tanh()).softmax(-1)
    return (weights @ v).transpose(1, 2).contiguous(), weights


def with_sink(stock: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
    logits = q @ k.transpose(-1, -2) * scaling
    weights = torch.cat([logits, torch.zeros_like(logits[..., :1])], -1).softmax(-1)[..., :-1]
    return (weights @ v).transpose(1, 2).contiguous(), weights


def biased(stock: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
    near = -(torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])).abs() / 10
    return stock(module, q, k, v, near.expand(len(q), 1, -1, -1), scaling, **rest)


#: what an encoder may do in its attention function, behind what that function is given
SABOTAGE: dict[str, Any] = {
    "scale": lambda stock, m, q, k, v, mask, scaling, **r: stock(m, q, k, v, mask, scaling * 1.05, **r),
    "rotation": lambda stock, m, q, k, v, mask, scaling, **r: stock(m, turned(q), turned(k), v, mask, scaling, **r),
    "heads": lambda stock, m, q, k, v, mask, scaling, **r: stock(m, q, k.roll(1, 1), v, mask, scaling, **r),
    "order": lambda stock, m, q, k, v, mask, scaling, **r: stock(m, q, k.flip(2), v.flip(2), mask, scaling, **r),
    "no map": lambda stock, *a, **r: (stock(*a, **r)[0], None),
    "soft cap": capped,
    "sink": with_sink,
    "bias": biased,
}


def sabotage(monkeypatch: pytest.MonkeyPatch, encoder: Any, kind: str) -> None:
    source: Any = sys.modules[type(towers.attention_layers(encoder)[0]).__module__]
    stock = source.eager_attention_forward

    def wrong(module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any, scaling: float, **rest: Any) -> Any:
        return SABOTAGE[kind](stock, module, q, k, v, attention_mask, scaling, **rest)

    monkeypatch.setattr(source, "eager_attention_forward", wrong)


@pytest.mark.parametrize("kind", SABOTAGE)
@pytest.mark.parametrize("name", ["clip", "qwen2_vl"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_encoder_with_an_attention_of_its_own_offers_none(name, kind, attention, monkeypatch) -> None:
    encoder = ENCODERS[name].make(attention)
    with torch.no_grad():  # weights as a fresh model has them: every map is nearly even
        for weight in encoder.parameters():
            weight.mul_(0.1 if weight.dim() > 1 else 1)
    sabotage(monkeypatch, encoder, kind)
    offered, fault = offers(encoder, ENCODERS[name].run)
    assert offered == ()
    assert ("gives no map" if kind == "no map" else "off the map it gives itself") in str(fault)


def test_an_attention_that_is_not_the_eager_one_offers_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
        return AttentionInterface()["sdpa"](module, query, key.roll(1, 1), value, *rest, **named)

    monkeypatch.setitem(AttentionInterface._global_mapping, "skewed", skewed)
    made = ENCODERS["siglip"]
    offered, fault = offers(made.make("skewed"), made.run)
    assert offered == ()
    assert "its importance with skewed attention is" in str(fault)


def test_an_encoder_that_cannot_be_run_offers_none() -> None:
    def run(encoder: Any) -> Any:
        raise ValueError("no pixels")

    assert offers(ENCODERS["clip"].make(), run) == ((), "trying it failed with ValueError: no pixels")
    trial._TRIED.clear()
    fault = "attention of its layer 1 was not called when it ran"
    assert offers(ENCODERS["clip"].make("eager"), lambda encoder: None) == ((), fault)


def test_a_pruner_says_that_it_takes_distinctiveness_and_refuses_attention(monkeypatch, caplog) -> None:
    monkeypatch.setattr(logging.getLogger("hf_efficient"), "propagate", True)
    type(towers.logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    model, processor = stock("llava")
    sabotage(monkeypatch, model.base_model.vision_tower, "rotation")
    for importance_ in ("cls", "received"):
        with pytest.raises(ValueError, match=f"importance='{importance_}' cannot be had from CLIPVisionModel.* off "):
            attach_token_pruner(model, processor, TokenPrunerConfig(importance=importance_))
    assert not caplog.records
    attach_token_pruner(model, processor, TokenPrunerConfig("top_importance", 4))
    shown = [model(**processor(**prompts("llava", ROWS))).logits for _ in range(2)]
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("CLIPVisionModel offers no attention to take importance from: attention rebuilt of")
    attach_token_pruner(model, processor, TokenPrunerConfig("top_importance", 4, importance="distinct"))
    assert torch.equal(model(**processor(**prompts("llava", ROWS))).logits, shown[0])


@pytest.mark.parametrize("breaks", [False, True])
def test_an_encoder_does_not_notice(breaks: bool) -> None:
    made = ENCODERS["clip"]
    encoder = made.make()
    encoder.encoder.layers[0].train()
    calls: list[int] = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    towers.attention_layers(encoder)[LAYER].register_forward_pre_hook(lambda *_: calls.append(1))

    def state() -> Any:
        hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks), m.training) for m in encoder.modules()]
        parts = [{k: id(v) for k, v in vars(m).items()} for m in encoder.modules()]
        names = [m.config._attn_implementation for m in encoder.modules() if hasattr(m, "config")]
        return hooks, parts, names, torch.is_grad_enabled(), torch.get_rng_state().tolist()

    twins: list[Any] = []

    def run(encoder: Any) -> Any:
        twins.append(encoder)
        made.run(encoder, output_hidden_states=True)
        if breaks:
            raise KeyboardInterrupt

    before = state()
    if breaks:
        with pytest.raises(KeyboardInterrupt):
            offers(encoder, run)
    else:
        assert offers(encoder, run)[1] is None
    assert state() == before
    assert not calls
    own = list(encoder.parameters())
    assert all(a is b for twin in twins for a, b in zip(twin.parameters(), own, strict=True))


def test_a_class_and_config_is_tried_once_and_not_without_weights() -> None:
    made, runs = ENCODERS["clip"], []

    def run(encoder: Any) -> Any:
        runs.append(encoder.config._attn_implementation)
        return made.run(encoder)

    with torch.device("meta"):
        empty = made.cls(made.config)
    assert offers(empty, run) == (("cls", "received"), None)
    assert runs == []
    for _ in range(2):
        encoder = made.make()
        assert offers(encoder, run) == offers(encoder, run) == (("cls", "received"), None)
        assert runs == ["eager", "sdpa"]


def test_layers_with_hooks_of_accelerate_are_tried() -> None:
    made = ENCODERS["pixtral"]
    encoder = made.make()
    for module in encoder.modules():
        add_hook_to_module(module, ModelHook())
    assert offers(encoder, made.run) == (("received",), None)


def test_flash_attention_finds_its_name_and_its_bounds_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention gets all images in one row, with their bounds, and reads its name in the module's config."""

    def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **rest: Any) -> Any:
        assert module.config._attn_implementation == "flash_of_test"
        lengths = rest["cu_seq_lens_q"].diff().tolist()
        rows = [
            (q @ k.transpose(-1, -2) * rest["scaling"]).softmax(-1) @ v
            for q, k, v in zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
        ]
        return torch.cat(rows, 2).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_of_test", flash)
    made = ENCODERS["qwen2_vl"]
    encoder = made.make()
    encoder.config._attn_implementation = "flash_of_test"  # making a model would look for its kernel
    assert offers(encoder, made.run) == (("received",), None)
    with Watch(towers.attention_layers(encoder)[LAYER], "received") as watch, torch.no_grad():
        made.run(encoder)
    expected = torch.cat([m.mean((0, 1)) for m in eager_maps("qwen2_vl")])
    assert torch.allclose(watch.result().flatten(), expected, rtol=1e-4, atol=1e-6)


def test_masks_of_every_kind_mean_the_same() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    seen = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    square = seen[:, None, None].expand(2, 1, 6, 6)
    added = torch.zeros(2, 1, 6, 6).masked_fill(~square, torch.finfo(torch.float32).min)
    block = create_block_mask(lambda b, h, i, j: seen[b, j], 2, None, 6, 6, device="cpu", BLOCK_SIZE=128)
    weights = (q @ k.transpose(-1, -2) / 8**0.5 + added).softmax(-1)
    received = torch.stack([weights[0, :, :4].mean((0, 1)), weights[1].mean((0, 1))])
    for mask in (seen, seen.long(), square, added, block):
        bias = bias_of(mask, 6)
        assert torch.allclose(importance(q, k, bias, None, "received"), received, atol=1e-6)
        assert torch.allclose(importance(q, k, bias, None, "cls"), weights[:, :, 0].mean(1), atol=1e-6)
