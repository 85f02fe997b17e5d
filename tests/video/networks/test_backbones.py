"""Networks against published parameter counts, and against what their layers must do."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hf_efficient.methods import BACKBONES
from hf_efficient.video.networks.backbones.backbone import center, upsample_bicubic
from hf_efficient.video.networks.backbones.luma import bicubic, luma
from hf_efficient.video.networks.backbones.wdsr import WDSR
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.networks.weights import Int8Conv2d, add_weight_norm, as_stored, fold_weight_norm, stored_bytes

PUBLISHED_PARAMETERS = {  # by scale 2, 3, 4
    "wdsr": (1_187_484, 1_192_959, 1_200_624),
    "wdsr with weight norm": (1_190_100, 1_195_605, 1_203_312),
    "espcn": (60_652, 64_987, 71_056),
    "srcnn": (69_251, 69_251, 69_251),
    "vdsr": (10_955, 10_955, 10_955),
    "edsr": (1_369_859, 1_554_499, 1_517_571),
}
SMALL = {
    "wdsr": (6, 2),
    "espcn": (8, 1),
    "edsr": (6, 2),
    "srcnn": (8, 1),
    "vdsr": (6, 3),
    "luma_wdsr": (6, 2),
    "luma_filter": (1, 1),
}


def published(name: str, scale: int) -> NetworkSpec:
    return NetworkSpec(name, scale, **BACKBONES.row(name).published)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    nets = [published(name.split()[0], scale).build() for scale in (2, 3, 4)]
    if "weight norm" in name:
        nets = [add_weight_norm(net) for net in nets]
    assert tuple(count(net) for net in nets) == PUBLISHED_PARAMETERS[name]


def test_other_published_counts() -> None:
    assert count(NetworkSpec("vdsr", 2, 64, 18).build()) == 668_227  # CaFM's width
    assert count(NetworkSpec("wdsr", 4, 32, 4).build()) + count_of_norms(32, 4, 4) == 314_736  # the phone's four blocks


def count_of_norms(features: int, blocks: int, scale: int) -> int:
    """Output channels of all layers of a WDSR: one length each."""
    return features + blocks * (4 * features + features) + 2 * 3 * scale**2


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", BACKBONES.names)
def test_radius_is_the_receptive_radius(name: str, scale: int) -> None:
    spec = NetworkSpec(name, scale, *SMALL[name])
    torch.manual_seed(0)
    net = spec.build().double()
    side = 2 * spec.receptive_radius + 9
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    y = net(x)
    assert y.shape == (1, 3, scale * side, scale * side)
    center = slice(scale * (side // 2), scale * (side // 2 + 1))
    (gradient,) = torch.autograd.grad(y[..., center, center].abs().sum(), x)
    touched = gradient[0].abs().sum(0).nonzero()
    reach = (touched - side // 2).abs().max().item()
    # never more, and not much less: ReLUs may cut a few paths, HR layers round up
    assert reach <= spec.receptive_radius
    assert reach >= spec.receptive_radius - 2


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", BACKBONES.names)
def test_trimmed_is_the_middle_of_the_whole(name: str, scale: int) -> None:
    """Further from the border than the radius, and that much is left, both are the same."""
    spec = NetworkSpec(name, scale, *SMALL[name])
    torch.manual_seed(0)
    net = spec.build().double()
    side, far = 2 * spec.receptive_radius + 9, scale * spec.receptive_radius
    x = torch.rand(1, 3, side, side + 4, dtype=torch.float64)
    with torch.no_grad():
        whole, part = net(x), net(x, trim=True)
    middle = whole[..., far:-far, far:-far]
    assert middle.shape[2:] == (9 * scale, 13 * scale)
    torch.testing.assert_close(center(part, middle.shape[2:]), middle, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", BACKBONES.names)
def test_the_largest_activation_is_counted(name: str) -> None:
    for scale in (2, 3, 4):
        spec, made = NetworkSpec(name, scale, 8, 2), []
        net = spec.build()
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(lambda _, __, y: made.append(y.numel()))
        made.append(net(torch.rand(1, 3, 6, 5)).numel())
        assert max(made) == max(spec.largest_activation, 3 * scale**2) * 6 * 5


def test_the_input_is_left_alone() -> None:
    x = torch.rand(1, 3, 8, 9)
    before = x.clone()
    for name, size in SMALL.items():
        NetworkSpec(name, 2, *size).build()(x)
    assert torch.equal(x, before)


def test_published_initial_lengths() -> None:
    net = add_weight_norm(NetworkSpec("wdsr", 2, 32, 16).build())
    lengths = {n: p.detach() for n, p in net.named_parameters() if n.endswith("original0")}
    for name, value in lengths.items():
        expected = 2.0 if "expand" in name else 0.25 if "project" in name else 1.0
        torch.testing.assert_close(value, torch.full_like(value, expected))
    assert all(not p.any() for n, p in net.named_parameters() if n.endswith("bias"))


def test_weight_norm_comes_and_goes_without_a_change() -> None:
    torch.manual_seed(0)
    net, x = NetworkSpec("wdsr", 3, 6, 2).build(), torch.rand(2, 3, 8, 8)
    names, before = set(net.state_dict()), net(x)
    torch.testing.assert_close(add_weight_norm(net)(x), before)
    torch.testing.assert_close(fold_weight_norm(net)(x), before)
    assert set(net.state_dict()) == names


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_start_is_bicubic(scale: int) -> None:
    torch.manual_seed(0)
    net = WDSR(scale, 4, 1)
    net.start_from_bicubic()
    net.tail.weight.data.zero_()
    x = torch.rand(1, 3, 12, 14)
    inside = (..., slice(3 * scale, -3 * scale), slice(3 * scale, -3 * scale))
    torch.testing.assert_close(net(x)[inside], upsample_bicubic(x, scale)[inside], atol=1e-5, rtol=0)


def test_luma_networks_add_the_same_to_red_green_and_blue() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 12, 14)
    for name in ("luma_wdsr", "luma_filter"):
        net: Any = NetworkSpec(name, 2, 4, 1).build()
        net.skip.weight.data.normal_()
        correction = net(x) - bicubic(x, 2)
        assert correction.abs().mean() > 0.1
        torch.testing.assert_close(correction, correction[:, :1].expand_as(correction), atol=1e-5, rtol=0)
        gray = luma(x).expand_as(x)
        torch.testing.assert_close(net(gray) - bicubic(gray, 2), correction, atol=1e-5, rtol=0)  # it sees luma alone


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_luma_network_without_a_correction_is_bicubic(scale: int) -> None:
    x = torch.rand(1, 3, 12, 14)
    inside = (..., slice(3 * scale, -3 * scale), slice(3 * scale, -3 * scale))
    enlarged = NetworkSpec("luma_filter", scale).build()(x)
    torch.testing.assert_close(enlarged[inside], upsample_bicubic(x, scale)[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in BACKBONES.names if name != "luma_filter"])  # it starts from zeros
def test_stored_weights_change_little(name: str) -> None:
    spec = NetworkSpec(name, 2, *SMALL[name])
    torch.manual_seed(0)
    source, x = spec.build(), torch.rand(1, 3, 16, 16)
    outputs = {}
    for dtype in ("float32", "float16", "int8"):
        net = spec.build()
        net.load_state_dict(source.state_dict())
        outputs[dtype] = as_stored(net, dtype)(x)
    assert torch.equal(outputs["float32"], source(x))
    scale = outputs["float32"].std()
    assert (outputs["float16"] - outputs["float32"]).abs().max() < 0.01 * scale
    assert 0 < (outputs["int8"] - outputs["float32"]).abs().mean() < 0.05 * scale


def test_int8_rounds_to_the_nearest_of_255_steps() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    twin = Int8Conv2d.from_conv(layer)
    restored = twin.weight.float() * twin.weight_scale[:, None, None, None]
    step = layer.weight.flatten(1).abs().amax(1)[:, None, None, None] / 127
    assert ((restored - layer.weight).abs() <= step / 2 + 1e-7).all()
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(twin(x), F.conv2d(x, restored, layer.bias, padding=1))


def test_stored_bytes_count_every_tensor() -> None:
    net = NetworkSpec("wdsr", 4, 32, 16).build()
    assert stored_bytes(net, "float32") == 4 * 1_200_624
    assert stored_bytes(net, "float16") == 2 * 1_200_624
    predicted = stored_bytes(net, "int8")
    net = as_stored(net, "int8")
    tensors = net.state_dict().values()
    assert predicted == sum(t.numel() * (1 if t.dtype == torch.int8 else 2) for t in tensors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "rcan"}, "backbone='rcan' is not known"),
        ({"scale": 5}, "scale=5"),
        ({"num_features": 0}, "num_features=0"),
        ({"num_blocks": 2.5}, "num_blocks=2.5"),
        ({"num_blocks": 10**9}, "num_blocks=1000000000"),
        ({"expansion": True}, "expansion=True"),
    ],
)
def test_impossible_networks_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSpec(**settings)  # type: ignore[arg-type]
