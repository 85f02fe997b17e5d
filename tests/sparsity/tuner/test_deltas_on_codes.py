"""Sparse deltas on bases that torchao or GPTQ has quantized, against the matrices that their codes stand for."""

import gc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_efficient import BiDSTConfig, compress, keep_sparsity, save_sparse, train_sparsely
from hf_efficient.sparsity.tuner.layer import BiDSTLayer
from tests.sparsity.models import disturb


def by_torchao(name: str, *bits: Any) -> Callable[[nn.Module], None]:
    def quantize(net: nn.Module) -> None:
        quantization = pytest.importorskip("torchao.quantization")
        groups = pytest.importorskip("torchao.quantization.granularity").PerGroup(32)
        config = getattr(quantization, name)
        quantization.quantize_(net, config(*bits, groups) if bits else config())

    return quantize


def by_gptq(net: nn.Module) -> None:
    """Every 32 inputs of an output share a scale; the rounding is the nearest, which the layer does not care about."""
    layers = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    for name in ("0", "2"):
        plain: Any = net.get_submodule(name)
        outputs, inputs = plain.weight.shape
        made = layers.TorchLinear(4, 32, True, False, inputs, outputs, bias=True)
        scales = (plain.weight.detach().view(outputs, -1, 32).abs().amax(2) / 7).half()
        made.pack_original(plain, scales, torch.full_like(scales, 8), torch.arange(inputs) // 32)
        made.post_init()
        net.set_submodule(name, made)


KINDS = {
    "torchao, 8 bits": by_torchao("Int8WeightOnlyConfig"),
    "torchao, 4 bits": by_torchao("IntxWeightOnlyConfig", torch.int4),
    "torchao, float8": by_torchao("Float8WeightOnlyConfig"),
    "GPTQ": by_gptq,
}
EVERY = pytest.mark.parametrize("kind", KINDS)
CLOSE = {"rtol": 1e-2, "atol": 1e-2}  # GPTQ's layers compute in float16


def quantized(quantize: Callable[[nn.Module], None]) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.LayerNorm(64))
    quantize(net)
    return net


def adapted(net: nn.Module, **settings: Any) -> PeftModel:
    common: dict[str, Any] = {"target": "delta", "sparsity": 0.9, "target_modules": ["0", "2"], "update_interval": 3}
    return get_peft_model(net, BiDSTConfig(**common | settings))


def inputs() -> Tensor:
    return torch.randn(6, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def numbers(layer: Any, columns: int) -> Tensor:
    """What a layer's codes stand for, by its outputs alone."""
    return (layer(torch.eye(columns)) - layer.bias).float().T


@EVERY
def test_outputs_and_gradients_are_those_of_base_and_delta(kind: str) -> None:
    model = adapted(quantized(KINDS[kind]), init="random", backend="dense").train()
    disturb(model)
    layer: BiDSTLayer = model.base_model.model[0]
    base: Any = layer.get_base_layer()
    weight = layer.sparse_weight("default")
    x = inputs().requires_grad_(True)
    delta = weight.dense().detach().requires_grad_(True)
    truth = F.linear(x, numbers(base, 64) + delta, base.bias.float())
    found = layer(x).float()
    torch.testing.assert_close(found, truth, **CLOSE)
    seed = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    to_x, to_values = torch.autograd.grad((found * seed).sum(), (x, weight.values))
    expected_x, to_delta = torch.autograd.grad((truth * seed).sum(), (x, delta))
    torch.testing.assert_close(to_x, expected_x, **CLOSE)
    torch.testing.assert_close(to_values, to_delta.flatten()[weight.long_indices], **CLOSE)


@EVERY
def test_the_first_mask_is_that_of_the_numbers(kind: str) -> None:
    """The largest of them, but for what rounds in float16."""
    model = adapted(quantized(KINDS[kind]), init="magnitude", distribution="uniform")
    for name, columns in (("0", 64), ("2", 128)):
        layer: Any = model.base_model.model.get_submodule(name)
        sizes = numbers(layer.get_base_layer(), columns).flatten().abs()
        active = layer.sparse_weight("default").long_indices
        assert sizes[active].min() >= sizes.kthvalue(sizes.numel() - len(active)).values - 1e-3


@EVERY
@pytest.mark.parametrize("init", ["snip", "gradient"])
def test_it_trains_and_files_bring_it_back(kind: str, init: str, tmp_path: Path) -> None:
    model = adapted(quantized(KINDS[kind]), init=init).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    training = train_sparsely(model, optimizer, 12)
    losses = []
    for _ in range(12):
        loss = model(inputs()).float().square().sub(1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert training.report()["mask_updates"]
    model.eval().save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(quantized(KINDS[kind]), str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(again(inputs()), model(inputs()))
    with pytest.raises(ValueError, match=r"cannot be merged into a .*Linear: its codes"):
        model.merge_and_unload()  # type: ignore[operator]


class WithoutBackward(nn.Module):
    """Codes with a kernel that makes no graph, and no `weight`."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.scale = float(plain.weight.detach().abs().max()) / 127
        self.register_buffer("qweight", (plain.weight.detach() / self.scale).round().to(torch.int8))
        self.register_buffer("bias", plain.bias.detach().clone())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qweight.float() * self.scale, self.bias)  # type: ignore[operator, arg-type]


def by_kernels_without_backward(net: nn.Module) -> None:
    for name in ("0", "2"):
        net.set_submodule(name, WithoutBackward(net.get_submodule(name)))  # type: ignore[arg-type]


WITHOUT_BACKWARD = pytest.mark.parametrize(
    "quantize",
    [by_kernels_without_backward, by_torchao("Int8DynamicActivationIntxWeightConfig", torch.int4)],
    ids=["no weight", "torchao"],
)


@WITHOUT_BACKWARD
def test_codes_that_let_no_gradient_through_are_refused(quantize: Callable[[nn.Module], None]) -> None:
    """E.g. torchao's kernels that quantize activations as well: layers below would learn by their deltas alone."""
    model = adapted(quantized(quantize), init="random").train()
    disturb(model)
    with pytest.raises(ValueError, match=r"lets no gradient through to its input.*weights alone"):
        model(inputs())
    with pytest.raises(ValueError, match=r"lets no gradient through to its input.*weights alone"):
        model.eval()(inputs()).square().sum().backward()


def test_codes_that_let_no_gradient_through_serve_where_none_is_wanted() -> None:
    """Outputs without torch.no_grad(), and gradients of the last delta alone."""
    net = quantized(by_kernels_without_backward)
    model = adapted(net, init="random")
    disturb(model)
    with torch.no_grad():
        expected = model(inputs())
    found = model.eval()(inputs())
    torch.testing.assert_close(found, expected)
    last: BiDSTLayer = model.base_model.model[2]
    weight = last.sparse_weight("default")
    (gradient,) = torch.autograd.grad(found.sum(), weight.values, retain_graph=True)
    assert gradient.abs().sum() > 0


def deep(quantize: Callable[[nn.Module], None], residual: bool = False) -> nn.Module:
    """Layers below and above two in the middle that have codes."""
    torch.manual_seed(0)
    middle = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    quantize(middle)
    between = Residual(middle) if residual else middle
    return nn.Sequential(OrderedDict(below=nn.Linear(64, 64), relu=nn.ReLU(), middle=between, above=nn.Linear(64, 64)))


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@WITHOUT_BACKWARD
@pytest.mark.parametrize("target", ["delta", "weight"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layers", [["below"], ["below", "above"]], ids=["none above", "one above"])
def test_codes_of_layers_without_deltas_that_let_no_gradient_through_are_named(
    quantize: Callable[[nn.Module], None], target: Any, residual: bool, layers: list[str]
) -> None:
    """With a delta above, those below would silently not learn."""
    model = adapted(deep(quantize, residual), target=target, init="random", target_modules=layers, train_others=False)
    loss = model.train()(inputs()).square().sum()
    with pytest.raises(ValueError, match=r"lets no gradient through to its input.*weights alone"):
        loss.backward()
    del loss  # it has the graph
    gc.collect()
    with torch.no_grad():
        expected = model.eval()(inputs())
    assert torch.equal(model.train()(inputs()), expected)
    assert not any(module._forward_hooks for module in model.modules())


class Checkpointed(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return checkpoint(super().forward, x, use_reentrant=False)


def test_codes_without_deltas_are_named_under_checkpointing() -> None:
    """Torch would say that the layers are not called again as they were called before."""
    net: Any = deep(by_kernels_without_backward)
    net.middle = Checkpointed(net.middle[0], nn.ReLU())
    model = adapted(net, init="random", target_modules=["below", "above"]).train()
    loss = model(inputs()).square().sum()
    with pytest.raises(ValueError, match=r"lets no gradient through to its input.*weights alone"):
        loss.backward()


def test_layers_without_backward_are_compiled_where_the_model_inside_is() -> None:
    """Nothing is named there, and nothing breaks the graph."""
    model = adapted(deep(by_kernels_without_backward), init="random", target_modules=["below", "above"])
    expected = model.train()(inputs())
    model.base_model.model.compile(backend="eager", fullgraph=True)
    assert torch.equal(model(inputs()), expected)


def test_what_layers_without_backward_give_may_be_changed_in_place() -> None:
    net: Any = deep(by_kernels_without_backward)
    net.middle[1] = nn.ReLU(inplace=True)
    model = adapted(net, init="random", target_modules=["below"])
    expected = model.eval()(inputs())
    assert torch.equal(model.train()(inputs()), expected)


def test_layers_without_backward_below_all_that_learn_are_let_be() -> None:
    """Also where inputs are made to want gradients, as for checkpointing."""
    model = adapted(deep(by_kernels_without_backward), init="random", target_modules=["above"]).train()
    for x in (inputs(), inputs().requires_grad_()):
        model(x).square().sum().backward()
        values = model.base_model.model.above.sparse_weight("default").values
        assert values.grad.abs().sum() > 0
        values.grad = None


def test_layers_without_deltas_that_let_gradients_through_train_as_they_are() -> None:
    """Gradients are those of the matrices that the codes stand for."""
    model = adapted(deep(KINDS["torchao, 8 bits"]), init="random", target_modules=["below"]).train()
    values = model.base_model.model.below.sparse_weight("default").values
    (found,) = torch.autograd.grad(model(inputs()).square().sum(), values)
    for name in ("0", "2"):
        codes: Any = model.base_model.model.middle[int(name)]
        plain = nn.Linear(64, 64)
        with torch.no_grad():
            plain.weight.copy_(numbers(codes, 64))
            plain.bias.copy_(codes.bias)
        model.base_model.model.middle[int(name)] = plain
    (expected,) = torch.autograd.grad(model(inputs()).square().sum(), values)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_what_takes_no_codes_of_torchao_says_so(tmp_path: Path) -> None:
    """Their tensors have the dtype of numbers, but not the operators."""
    net = quantized(KINDS["torchao, 8 bits"])
    with pytest.raises(ValueError, match="is quantized by torchao"):
        keep_sparsity(net)
    with pytest.raises(ValueError, match="is quantized by torchao"):
        keep_sparsity(get_peft_model(quantized(KINDS["torchao, 8 bits"]), LoraConfig(target_modules=["0"])))
    with pytest.raises(ValueError, match="quantized to codes"):
        save_sparse(net, tmp_path)
    before = net(inputs())
    assert torch.equal(compress(net)(inputs()), before)
