"""Compact inference: the same outputs, the way back, and what is left alone."""

import copy
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from hf_efficient import BiDSTConfig, compress, decompress
from hf_efficient.sparsity.csr.linear import CSRLinear
from tests.sparsity.models import llama, logits


def sparse_llama() -> nn.Module:
    model = llama()
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(torch.rand(module.weight.shape) < 0.1)
    return model


def test_compressing_keeps_outputs_and_decompressing_brings_the_model_back() -> None:
    model = sparse_llama()
    expected, before = logits(model), copy.deepcopy(model.state_dict())
    assert compress(model, backend="csr") is model
    assert sum(isinstance(m, CSRLinear) for m in model.modules()) == 14
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert decompress(model) is model
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(logits(model), expected)


def test_compress_leaves_alone_what_would_not_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_efficient.sparsity.csr.compress.csr_infers_faster", lambda shape, *_: shape[1] == 48)
    model = compress(sparse_llama())
    kinds = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, CSRLinear)}
    assert kinds == {"down_proj"}
    assert not any(isinstance(m, CSRLinear) for m in compress(llama(), backend="csr").modules())


def test_csr_linear_has_a_bias_and_any_number_of_dimensions() -> None:
    linear = nn.Linear(12, 7)
    linear.weight.data.mul_(torch.rand(7, 12) < 0.2)
    x = torch.randn(2, 3, 12)
    assert torch.allclose(CSRLinear(linear.weight, linear.bias)(x), linear(x), atol=1e-6)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="backend='compact'"):
        compress(llama(), backend="compact")
    with pytest.raises(ValueError, match="tokens=0"):
        compress(llama(), tokens=0)
    with pytest.raises(ValueError, match="merge_and_unload"):
        compress(get_peft_model(llama(), BiDSTConfig(sparsity=0.9)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_compressed_model_is_cast_as_a_plain_one(dtype: torch.dtype) -> None:
    expected = sparse_llama().to(dtype)
    model = compress(sparse_llama(), backend="csr")
    logits(model)  # a matrix of float32 is known by now
    model.to(dtype)
    outputs = logits(model)
    assert outputs.dtype == dtype
    close = {"rtol": 0.02, "atol": 0.02} if dtype != torch.float64 else {}
    torch.testing.assert_close(outputs, logits(expected), **close)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, CSRLinear):
                layer.values.zero_()
    assert not torch.equal(logits(model), outputs)  # what was changed in place is read anew
    assert {p.dtype for p in decompress(model).parameters()} == {dtype}


def test_a_compressed_model_works_under_autocast() -> None:
    model = compress(sparse_llama(), backend="csr")
    expected = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = logits(model)
    assert torch.allclose(outputs.float(), expected, atol=0.02)


def test_save_pretrained_would_lose_weights_and_is_refused(tmp_path: Path) -> None:
    model = compress(sparse_llama(), backend="csr")
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=r"is compressed.*save_sparse.*decompress"):
            each.save_pretrained(tmp_path)
    expected = logits(decompress(model))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path)), expected)
    untouched = compress(llama(), backend="csr")
    untouched.save_pretrained(tmp_path)
