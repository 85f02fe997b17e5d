"""A scale of 1.5: blocks of 2 x 2 pixels become 3 x 3, in networks, filters, tiles, patches and whole bundles."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hf_efficient import STDOPipeline
from hf_efficient.video.encode.filter import fit_filter
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.patch_store import Pair
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.geometry import Geometry
from hf_efficient.video.networks.backbones.backbone import upsample_bicubic
from hf_efficient.video.networks.backbones.luma import LumaWDSR, bicubic, luma
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.inference import enlarge, enlarge_whole
from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.patches import pad_to_grid, replicate_border
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import FitSettings
from hf_efficient.video.tiles import split_into_tiles
from tests.video.bundles import QUICK, source_clip

SPEC = NetworkSpec("luma_wdsr", 1.5, 6, 2)
RADIUS = 12


def network() -> LumaWDSR:
    torch.manual_seed(0)
    net = SPEC.build().eval().requires_grad_(False)
    assert isinstance(net, LumaWDSR)
    torch.nn.init.normal_(net.tail.weight, std=0.05)
    return net


def test_the_bicubic_part_is_that_of_torch_inside() -> None:
    x = torch.rand(2, 3, 16, 20)
    expected = upsample_bicubic(x, 1.5)[..., 6:-6, 6:-6]
    torch.testing.assert_close(bicubic(x, 1.5)[..., 6:-6, 6:-6], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(bicubic(x, 1.5, trim=True)[..., 3:-3, 3:-3], expected, atol=1e-5, rtol=0)


def test_first_layers_are_convolutions_of_blocks() -> None:
    """A stride of two pixels is pixel_unshuffle and a filter of 3 x 3 blocks."""
    net, y = network(), torch.rand(1, 1, 16, 20)
    on_blocks = net.head.weight.reshape(6, 3, 2, 3, 2).permute(0, 2, 4, 1, 3).reshape(6, 4, 3, 3)
    expected = F.conv2d(F.pixel_unshuffle(y, 2), on_blocks, net.head.bias, padding=1)
    torch.testing.assert_close(net.head(y), expected)


def test_the_radius_is_the_receptive_radius() -> None:
    net, side = network().requires_grad_(False), 2 * RADIUS + 10
    assert SPEC.receptive_radius == RADIUS
    x = torch.rand(1, 3, side, side, requires_grad=True)
    large = net(x)
    middle = 3 * (side // 4)  # first pixel of a block of 3 x 3
    large[0, 0, middle : middle + 3, middle : middle + 3].sum().backward()
    assert x.grad is not None
    rows = x.grad[0].abs().sum((0, 2)).nonzero().flatten()
    first, last = 2 * (side // 4), 2 * (side // 4) + 1
    assert [first - int(rows.min()), int(rows.max()) - last] == [RADIUS, RADIUS]


def test_tiles_are_seamless() -> None:
    net, x = network(), torch.rand(1, 3, 62, 50)
    whole = enlarge_whole(net, SPEC, x)
    assert whole.shape == (1, 3, 93, 75)
    for pixels in (130, 500, 1111):
        tiles = split_into_tiles((0, 0, 62, 50), pixels, 2)
        assert all(edge % 2 == 0 for tile in tiles for edge in tile)
        assert sum((b - t) * (r - left) for t, left, b, r in tiles) == 62 * 50
        torch.testing.assert_close(enlarge([net], [SPEC], x, None, (48, 48), pixels), whole, atol=1e-5, rtol=0)
    labels = np.random.default_rng(0).integers(0, 2, (3, 3))
    other = NetworkSpec("luma_wdsr", 1.5, 6, 2).build().eval()
    mixed, second = enlarge([net, other], [SPEC, SPEC], x, labels, (24, 24)), enlarge_whole(other, SPEC, x)
    for i, j in np.ndindex(3, 3):
        area = (..., slice(36 * i, 36 * (i + 1)), slice(36 * j, 36 * (j + 1)))
        torch.testing.assert_close(mixed[area], (second if labels[i, j] else whole)[area], atol=1e-5, rtol=0)


def test_the_filter_is_that_of_least_squares() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(1, 3, 44, 40), torch.rand(1, 3, 66, 60)
    net = fit_filter([Pair(x, y)], 1.5)
    padded = replicate_border(x, 4)
    p = luma(padded)[0, 0].double().numpy() - 0.5
    rows = [[*p[i : i + 10, j : j + 10].ravel(), 1.0] for i in range(0, 44, 2) for j in range(0, 40, 2)]
    large = bicubic(padded, 1.5, trim=True)[..., 3:-3, 3:-3]
    left = (luma(y) - luma(large))[0, 0].double().numpy()
    for n in range(9):
        target = left[n // 3 :: 3, n % 3 :: 3].ravel()
        expected = np.linalg.lstsq(np.array(rows), target, rcond=None)[0]
        found = [*net.skip.weight[n].flatten().tolist(), float(net.skip.bias[n])]  # type: ignore[index]
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("size", [(640, 272), (95, 62), (61, 49)])
def test_small_frames_cover_the_large_ones(size: tuple[int, int]) -> None:
    geometry = Geometry.choose(*size, 1.5)
    assert [geometry.lr_width % 2, geometry.lr_height % 2, geometry.patch_width % 2, geometry.patch_height % 2] == [
        0
    ] * 4
    padded = pad_to_grid(torch.rand(1, 3, size[1], size[0]), geometry)
    assert padded.shape[-2:] == (geometry.lr_height * 3 // 2, geometry.lr_width * 3 // 2)
    assert 0 <= padded.shape[-1] - size[0] < 3


def test_only_general_networks_have_it() -> None:
    with pytest.raises(ValueError, match=r"scale=1.5 is not supported; expected 2, 3 or 4"):
        FitSettings(scale=1.5, method="jstdo")
    with pytest.raises(ValueError, match=r"scale=1.25 is not supported; expected 1.5, 2, 3 or 4"):
        FitSettings(scale=1.25)
    with pytest.raises(ValueError, match=r"num_features=8: .* expected at least 16"):
        FitSettings(scale=1.5, num_features=8)
    assert FitSettings(scale=1.5).context == RADIUS


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("fractional")
    settings = {**QUICK, "method": "delta", "num_features": 16, "num_blocks": 2, "scale": 1.5, "lr_quality": 40}
    return fit_video(source_clip(folder, size=(94, 62)), folder / "bundle", **settings)


def test_a_bundle_plays_at_the_size_of_its_source(fitted: Bundle) -> None:
    assert (fitted.geometry.lr_width, fitted.geometry.lr_height) == (64, 42)
    assert Bundle.open(fitted.path).geometry.scale == 1.5
    frames = [frame.rgb for frame in Player(fitted).frames()]
    assert len(frames) == 12
    assert {frame.shape for frame in frames} == {(62, 94, 3)}
    (piped,) = STDOPipeline.from_pretrained(fitted.path)(output_type="pil", max_frames=2, return_dict=False)
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(piped, frames, strict=False))
    assert {row["name"] for row in fitted.manifest["candidates"]["rows"]} == {
        "bicubic", "filter", "general", "scales", "delta",
    }  # fmt: skip


def test_the_general_network_is_nearer_than_bicubic() -> None:
    general = general_network(1.5, 16)
    y = (torch.arange(96)[:, None] // 8 + torch.arange(96) // 8) % 2 * 0.8 + 0.1  # sharp edges
    large = y.expand(1, 3, 96, 96)
    x = F.interpolate(large, size=(64, 64), mode="bicubic", antialias=True)
    errors = [
        float((luma(played) - luma(large)).square().mean())
        for played in (enlarge_whole(general.load(), general.spec, x), upsample_bicubic(x, 1.5))
    ]
    assert errors[0] < errors[1]


@pytest.mark.slow
def test_an_export_plays_the_same(fitted: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from hf_efficient.video.export.export import export_bundle
    from hf_efficient.video.export.player import OnnxPlayer

    export_bundle(fitted.path, tmp_path / "onnx", "onnx", None)
    pairs = zip(Player(fitted).frames(), OnnxPlayer(tmp_path / "onnx", threads=1).frames(), strict=True)
    assert max(int(np.abs(a.rgb.astype(int) - b.rgb).max()) for a, b in pairs) <= 1
