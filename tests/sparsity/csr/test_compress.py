"""Compact inference: the same outputs, the way back, and what is left alone."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

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
