"""The trained refinement of ITG's tokens: nothing before it is trained, nothing but its file after it is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_efficient
from hf_efficient import TokenPrunerConfig, attach_token_pruner, load_token_pruned
from hf_efficient.representation.config import CONFIG_NAME
from hf_efficient.representation.config_files import GENERATOR_NAME
from hf_efficient.representation.generator import TokenGenerator
from tests.fuzzing import limited_memory
from tests.tiny import FAMILIES, ROWS, budget, prompts, stock

reduce_tokens: Any = hf_efficient.reduce_tokens


def generator(width: int = 8, trained: bool = True, **settings: int) -> TokenGenerator:
    """A small generator; `trained`: as if it were, with random weights everywhere."""
    torch.manual_seed(0)
    made = TokenGenerator(width, **{"hidden": 16, "layers": 1, "heads": 2, **settings})
    if trained:
        torch.nn.init.normal_(made.up.weight)
    return made


def config(**settings: Any) -> TokenPrunerConfig:
    return TokenPrunerConfig(**{"method": "itg", "budget": 4, **settings})


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 30, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_it_changes_no_bit(x, dtype):
    x = x.to(dtype)
    plain = reduce_tokens(x, config())
    refined = reduce_tokens(x, config(generator=generator(trained=False)))
    assert torch.equal(plain.tokens, refined.tokens)
    assert torch.equal(plain.report.reconstruction_error, refined.report.reconstruction_error)


def test_places_and_masses_stay_and_tokens_do_not(x):
    plain, refined = reduce_tokens(x, config()), reduce_tokens(x, config(generator=generator()))
    for name in ("indices", "assignment", "mass"):
        assert torch.equal(getattr(plain, name), getattr(refined, name))
    assert (plain.tokens - refined.tokens).abs().min() > 1e-6


def attention(layer: Any, asked: Tensor, seen: Tensor) -> Tensor:
    """Multi-head attention written down, for one unit (K, D) and (N, D)."""
    query, key, value = layer.in_proj_weight.chunk(3)
    bias = layer.in_proj_bias.chunk(3)
    heads = layer.num_heads
    q, k, v = (y @ w.T + b for y, w, b in zip((asked, seen, seen), (query, key, value), bias, strict=True))
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(0, 1) for y in (q, k, v))
    mixed = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return mixed.transpose(0, 1).flatten(1) @ layer.out_proj.weight.T + layer.out_proj.bias


def test_it_is_the_decoder_written_down(x):
    made: Any = generator()
    tokens = reduce_tokens(x, config()).tokens
    layer: Any = made.decoder.layers[0]
    z, seen = made.down(tokens[1]), made.down(x[1])
    z = z + attention(layer.self_attn, layer.norm1(z), layer.norm1(z))
    z = z + attention(layer.multihead_attn, layer.norm2(z), seen)
    z = z + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm3(z))))
    expected = tokens[1] + made.up(made.decoder.norm(z))
    torch.testing.assert_close(made(tokens, x)[1], expected, atol=1e-5, rtol=1e-5)


def test_invalid_tokens_are_not_looked_at(x):
    valid = torch.ones(3, 30, dtype=torch.bool)
    valid[:, 25:] = False
    other = x.clone()
    other[:, 25:] = 7.0
    one, two = (reduce_tokens(y, config(generator=generator()), valid=valid).tokens for y in (x, other))
    torch.testing.assert_close(one, two)


def test_keeping_all_tokens_leaves_them_as_they_are(x):
    assert torch.equal(reduce_tokens(x, config(budget=30, generator=generator())).tokens, x)


def test_it_learns_what_its_tokens_should_be(x):
    """Least squares to tokens that ITG does not make: the error falls to a small part within a few steps."""
    made, goal = generator(trained=False), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    errors = []
    for _ in range(120):
        loss = (reduce_tokens(x, config(generator=made)).tokens - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.1 * errors[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_one(name):
    model, processor = stock(name)
    width = model.config.get_text_config().hidden_size
    logits = []
    for refine in (None, generator(width, trained=False), generator(width)):
        attach_token_pruner(model, processor, config(budget=budget(name), generator=refine))
        inputs = processor(**prompts(name, ROWS))
        with torch.no_grad():
            logits.append(model(**inputs).logits[:, -1])
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 1e-4
    assert generator(width)(torch.zeros(1, 2, width), torch.zeros(1, 3, width)).shape == (1, 2, width)


def test_other_levels_of_features_stay_in_closed_form():
    model, processor = stock("qwen3_vl")
    outputs = []
    for refine in (None, generator(model.config.get_text_config().hidden_size)):
        attach_token_pruner(model, processor, config(budget=3, generator=refine))
        inputs = processor(**prompts("qwen3_vl", [[0]]))
        outputs.append(model.base_model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]))
    plain, refined = outputs
    assert not torch.equal(plain.pooler_output[0], refined.pooler_output[0])
    for one, two in zip(plain.deepstack_features, refined.deepstack_features, strict=True):
        assert torch.equal(torch.cat(list(one)), torch.cat(list(two)))


def test_a_saved_config_brings_it_back(tmp_path, x):
    saved = config(generator=generator())
    saved.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [GENERATOR_NAME, CONFIG_NAME]
    back = TokenPrunerConfig.from_pretrained(tmp_path)
    assert back == saved
    assert back.generator is not None
    assert not any(parameter.requires_grad for parameter in back.generator.parameters())
    torch.testing.assert_close(reduce_tokens(x, back).tokens, reduce_tokens(x, saved).tokens)


def test_a_saved_pair_brings_it_back(tmp_path):
    model, processor = stock("llava")
    attach_token_pruner(model, processor, config(generator=generator(model.config.get_text_config().hidden_size)))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, again_processor = load_token_pruned(tmp_path)
    inputs = processor(**prompts("llava", ROWS))
    with torch.no_grad():
        logits = again.eval()(**again_processor(**prompts("llava", ROWS))).logits
        torch.testing.assert_close(logits, model(**inputs).logits)
    assert not any("generator" in name for name in load_file(tmp_path / "model.safetensors"))


def broken(folder: Path, how: str) -> None:
    file = folder / GENERATOR_NAME
    weights = load_file(file)
    if how == "missing":
        file.unlink()
    elif how == "text":
        file.write_text("not weights")
    elif how == "shape":
        save_file({**weights, "up.bias": torch.zeros(5)}, file)
    elif how == "names":
        save_file({f"module.{name}": value for name, value in weights.items()}, file)
    else:
        values = json.loads((folder / CONFIG_NAME).read_text())
        (folder / CONFIG_NAME).write_text(json.dumps({**values, "generator": {"width": 8, "heads": 5}}))


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("missing", FileNotFoundError, "Copy the whole folder"),
        ("text", ValueError, "not a whole safetensors file"),
        ("shape", ValueError, r"'up.bias' is F32 \(5,\), expected .* \(8,\)"),
        ("names", ValueError, "it has 0 layers"),
        ("settings", ValueError, "no settings of a generator"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, how, error, said):
    config(generator=generator()).save_pretrained(tmp_path)
    broken(tmp_path, how)
    with pytest.raises(error, match=said):
        TokenPrunerConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden": 2**31}, "does not hold the generator"),
        ({"hidden": 20000}, "does not hold the generator"),
        ({"layers": 10**9}, "does not hold the generator"),
        ({"width": 2**40}, "does not hold the generator"),
        ({"heads": 3}, "a multiple of heads"),
        ({"heads": 0}, "heads=0 is out of range"),
        ({"heads": True}, "heads=True is out of range"),
        ({"layers": -1}, "layers=-1 is out of range"),
        ({"layers": 1.0}, "layers=1.0 is out of range"),
        ({"hidden": "16"}, "hidden='16' is out of range"),
        ({"hidden": [16]}, r"hidden=\[16\] is out of range"),
        ({"depth": 3}, "no settings of a generator"),
    ],
)
def test_settings_are_compared_with_the_weights_before_anything_is_made_of_them(tmp_path, change, said):
    config(generator=generator()).save_pretrained(tmp_path)
    file = tmp_path / CONFIG_NAME
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "generator": {**values["generator"], **change}}))
    with limited_memory(2**28), pytest.raises(ValueError, match=said):
        TokenPrunerConfig.from_pretrained(tmp_path)


def test_what_it_is_not_made_for_is_refused(x):
    with pytest.raises(ValueError, match="8 wide, these are 6 wide"):
        reduce_tokens(x[..., :6], config(generator=generator()))
    with pytest.raises(ValueError, match="not of 'id_pruner'"):
        config(method="id_pruner", generator=generator())
    with pytest.raises(ValueError, match="has no weights"):
        TokenPrunerConfig.from_dict(config(generator=generator()).to_dict())
    model, processor = stock("llava")
    with pytest.raises(ValueError, match=f"8 wide, those of {type(model).__name__}"):
        attach_token_pruner(model, processor, config(generator=generator()))
    assert not hasattr(model.base_model, "token_pruner")
