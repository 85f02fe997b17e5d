"""2:4 layers as torch's semi-structured tensors: which, the way there and back; on a GPU, what they compute.

torch multiplies such tensors on GPUs only. Elsewhere their form is made and read by torch's own conversions for
CUTLASS, which run anywhere.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS

from hf_efficient import BiDSTConfig, compress, decompress, load_sparse, prune_wanda, save_sparse, train_sparsely
from hf_efficient.sparsity.csr import semi_structured
from tests.sparsity.loops import trainable

TAKEN = [True, False, False, False, True, False]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def two_of_four(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    """2:4 but for one place; kernels take the first layer and the one before the last."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 96),
        nn.ReLU(),
        nn.Linear(96, 64),  # of its inputs 64 is no divisor
        nn.Linear(64, 128),
        nn.Linear(128, 64, bias=False),
        nn.Linear(64, 50),  # of its outputs 32 is no divisor
    )
    prune_wanda(net, [torch.randn(8, 64)], pattern="2:4")
    with torch.no_grad():
        net[3].weight[5, :3] = 1.0
    return net.to(dtype).eval()


def kinds(model: nn.Sequential) -> list[bool]:
    return [isinstance(getattr(layer, "weight", None), SparseSemiStructuredTensor) for layer in model]


def forget(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.ones_(layer.weight)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take layers on any device, in the form that CUTLASS has."""
    cls: Any = SparseSemiStructuredTensorCUTLASS
    monkeypatch.setattr(cls, "_validate_device_dim_dtype_shape", classmethod(lambda *_: None))
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", cls.from_dense)
    monkeypatch.setattr(semi_structured, "suits", semi_structured.is_two_of_four)


def test_sizes_and_zeros_that_kernels_take() -> None:
    weight = torch.zeros(32, 64)
    weight.view(-1, 4)[:, 1:3] = 1.0
    assert semi_structured.is_two_of_four(weight)
    assert semi_structured.is_two_of_four(torch.zeros(64, 128))
    for shape in ((16, 64), (32, 32), (48, 64), (32, 96)):
        assert not semi_structured.is_two_of_four(torch.zeros(shape))
    weight[7, 4] = 1.0  # a third of four
    assert not semi_structured.is_two_of_four(weight)
    four_of_eight = torch.zeros(32, 64)
    four_of_eight.view(-1, 8)[:, :4] = 1.0
    assert not semi_structured.is_two_of_four(four_of_eight)
    assert not semi_structured.suits(torch.zeros(32, 64, dtype=torch.bfloat16))  # not on a GPU


@pytest.mark.usefixtures("everywhere")
def test_there_and_back_is_bit_for_bit(tmp_path: Path) -> None:
    model = two_of_four()
    plain = copy.deepcopy(model)
    assert compress(model, backend="semi_structured") is model
    assert kinds(model) == TAKEN
    assert not model[0].weight.requires_grad
    save_sparse(model, tmp_path)
    loaded = load_sparse(tmp_path, two_of_four().apply(forget))
    assert kinds(compress(copy.deepcopy(plain), backend="csr")) == [False] * 6
    assert decompress(model) is model
    assert kinds(model) == [False] * 6
    for one in (model, loaded):
        assert list(one.state_dict()) == list(plain.state_dict())
        for name, tensor in plain.state_dict().items():
            assert torch.equal(one.state_dict()[name], tensor), name


@pytest.mark.usefixtures("everywhere")
def test_auto_asks_a_timing_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(semi_structured, "infers_faster", lambda w, tokens: asked.append((tuple(w.shape), tokens)))
    assert kinds(compress(two_of_four(), tokens=7)) == [False] * 6
    assert asked == [((96, 64), 7), ((64, 128), 7)]
    monkeypatch.setattr(semi_structured, "infers_faster", lambda w, _: w.shape[0] == 64)
    assert kinds(compress(two_of_four())) == [False] * 4 + [True, False]


@ON_GPU
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_outputs_are_those_of_the_dense_model(dtype: torch.dtype, tmp_path: Path) -> None:
    model = two_of_four(dtype).cuda()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for shape in ((5, 64), (2, 3, 64), (512, 64)):  # 8 divides no more than the last number of activations
            x = torch.randn(shape, device="cuda", dtype=dtype)
            expected = decompress(model)(x)
            assert kinds(compress(model, backend="semi_structured")) == TAKEN
            torch.testing.assert_close(model(x), expected, rtol=2e-2, atol=2e-2)
    save_sparse(model, tmp_path)
    loaded = load_sparse(tmp_path, two_of_four(dtype).apply(forget))
    for name, tensor in before.items():
        assert torch.equal(decompress(model).state_dict()[name], tensor), name
        assert torch.equal(loaded.state_dict()[name], tensor.cpu()), name


@ON_GPU
def test_on_a_gpu_what_bidst_has_trained_is_compressed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).cuda()
    config = BiDSTConfig(pattern="2:4", target_modules=["0", "2"], update_interval=4, score_interval=2)
    model = get_peft_model(net, config)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    training = train_sparsely(model, optimizer, total_steps=40)
    for _ in range(40):
        x = torch.randn(32, 64, device="cuda")
        (model(x) - x.roll(1, 1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert training.report()["mask_updates"] > 2
    plain = model.merge_and_unload().to(torch.bfloat16).eval()
    x = torch.randn(16, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = plain(x)
        assert kinds(compress(plain, backend="semi_structured")) == [True, False, True]
        torch.testing.assert_close(plain(x), expected, rtol=2e-2, atol=2e-2)
