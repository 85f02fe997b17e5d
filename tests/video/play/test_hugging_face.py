"""STDO as users of transformers and diffusers know it: Auto classes, Trainer, pipelines, folders and Hub ids."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient import STDOConfig, STDOModel, STDOPipeline
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.manifest import BundleError
from hf_efficient.video.networks.experts import DEFAULTS
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import WEIGHT_DTYPES
from tests.local_hub import LocalHub
from tests.video.bundles import on_whole_frames, quick_bundle

SMALL = {"num_features": 4, "num_blocks": 1}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("stdo")
    return {
        dtype: quick_bundle(folder / dtype, method="stdo", num_chunks=2, weight_dtype=dtype) for dtype in WEIGHT_DTYPES
    }


@pytest.mark.parametrize("backbone", ["wdsr", "espcn", "edsr", "srcnn", "vdsr"])
def test_save_and_load_through_the_auto_classes(tmp_path: Path, backbone: str) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForImageToImage

    model = STDOModel(STDOConfig(backbone=backbone, num_experts=2, **SMALL)).eval()
    model.set_routing(b"\x01\x02\x03")
    model.save_pretrained(tmp_path)
    x = torch.rand(3, 3, 12, 10)
    expected = model(x, expert=torch.tensor([0, 1, 0])).reconstruction
    for auto in (AutoModel, AutoModelForImageToImage, STDOModel):
        again = auto.from_pretrained(tmp_path)
        assert type(again) is STDOModel
        assert torch.equal(again(x, expert=torch.tensor([0, 1, 0])).reconstruction, expected)
        assert again.routing.tolist() == [1, 2, 3]
    config = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in DEFAULTS} == {n: getattr(model.config, n) for n in DEFAULTS}


def test_forward_routes_and_gives_the_l1_loss() -> None:
    model = STDOModel(STDOConfig(num_experts=2, scale=3, **SMALL))
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 24, 24)
    output = model(x, labels=y, expert=torch.tensor([1, 0]))
    one, two = on_whole_frames(model.experts[1], x[:1]), on_whole_frames(model.experts[0], x[1:])
    torch.testing.assert_close(output.reconstruction, torch.cat([one, two]))
    torch.testing.assert_close(output.loss, (output.reconstruction - y).abs().mean())
    with pytest.raises(ValueError, match="2 networks"):
        model(x)
    with pytest.raises(ValueError, match="out of range"):
        model(x, expert=2)


def test_fp16_leaves_the_map_alone(bundles: dict[str, Bundle]) -> None:
    model = STDOModel.from_pretrained(bundles["float16"].model, dtype=torch.float16)
    assert model.dtype == torch.float16
    assert model.half().routing.dtype == torch.uint8
    g = bundles["float16"].geometry
    assert len(list(model.frame_labels(g.rows, g.columns))) == 12


def test_stock_trainer_trains_it(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = STDOModel(STDOConfig(**SMALL))
    image = torch.rand(3, 16, 16)
    data = [{"pixel_values": image[:, ::2, ::2], "labels": image}] * 8
    with torch.no_grad():
        before = model(data[0]["pixel_values"][None], labels=image[None]).loss
    arguments = TrainingArguments(str(tmp_path), max_steps=20, learning_rate=1e-2, use_cpu=True, disable_tqdm=True,
                                  save_strategy="no")  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=data).train()
    assert model(data[0]["pixel_values"][None], labels=image[None]).loss < 0.8 * before


def test_invalid_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="num_experts=0"):
        STDOConfig(num_experts=0)
    with pytest.raises(ValueError, match="weight_dtype='int4'"):
        STDOConfig(weight_dtype="int4")


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_pipeline_is_the_player(bundles: dict[str, Bundle], dtype: str, tmp_path: Path) -> None:
    pipe: Any = STDOPipeline.from_pretrained(bundles[dtype].path)
    pipe.set_progress_bar_config(disable=True)
    expected = np.stack([frame.rgb for frame in Player(bundles[dtype]).frames()])
    np.testing.assert_array_equal(np.stack([np.array(image) for image in pipe().frames]), expected)
    tensor = pipe(output_type="pt", max_frames=3).frames
    torch.testing.assert_close(tensor, torch.from_numpy(expected[:3]).permute(0, 3, 1, 2).float() / 255)
    (array,) = pipe(bundles[dtype].low_resolution, output_type="np", max_frames=2, return_dict=False)
    torch.testing.assert_close(torch.from_numpy(array), torch.from_numpy(expected[:2]).float() / 255)
    pipe.save_pretrained(tmp_path / "again")
    again, low = tmp_path / "again", bundles[dtype].low_resolution.name
    for name in ("model/config.json", "model/model.safetensors", "model_index.json", "bundle.json", "README.md", low):
        assert (again / name).read_bytes() == (bundles[dtype].path / name).read_bytes(), name
    loaded: Any = STDOPipeline.from_pretrained(again)
    assert loaded(output_path=tmp_path / "out.mp4", max_frames=2).frames.exists()
    inside: Any = STDOPipeline.from_pretrained(tmp_path, subfolder="again")
    assert inside.bundle.path == again


def test_pipeline_says_what_does_not_fit(bundles: dict[str, Bundle]) -> None:
    pipe = STDOPipeline.from_pretrained(bundles["float32"].path)
    with pytest.raises(BundleError, match=r"fit a video of 48x40"):
        pipe(np.zeros((2, 20, 20, 3), np.uint8))
    with pytest.raises(BundleError, match="more than the bundle's 12 frames"):
        pipe(np.zeros((13, 40, 48, 3), np.uint8))
    with pytest.raises(ValueError, match="output_type='gif'"):
        pipe(output_type="gif")
    with pytest.raises(BundleError, match="no bundle"):
        STDOPipeline(STDOModel(STDOConfig(**SMALL))).save_pretrained("nowhere")


def test_push_and_load_by_hub_id(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    folder = bundles["float16"].path
    code = f"""
from hf_efficient import STDOModel, STDOPipeline
pipe = STDOPipeline.from_pretrained({str(folder)!r})
pipe.push_to_hub("tester/clip")
again = STDOPipeline.from_pretrained("tester/clip")
assert len(again(output_type="np").frames) == 12
model = STDOModel.from_pretrained("tester/clip", subfolder="model")
assert model.config.num_experts == 2
from huggingface_hub import HfApi
HfApi().create_repo("tester/clips")
HfApi().upload_folder(repo_id="tester/clips", folder_path={str(folder)!r}, path_in_repo="a")
assert len(STDOPipeline.from_pretrained("tester/clips", subfolder="a")(output_type="np", max_frames=2).frames) == 2
"""
    with LocalHub() as hub:
        run = subprocess.run(
            [sys.executable, "-c", code], env=hub.environment(tmp_path), capture_output=True, text=True, cwd=Path.cwd()
        )
        assert run.returncode == 0, run.stderr[-2000:]
        assert {"bundle.json", "model_index.json", "model/model.safetensors"} <= set(hub.repos["tester/clip"])


def test_a_player_needs_neither_transformers_nor_diffusers(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    code = f"""
import sys
from hf_efficient.video.play.decode import decode
decode({str(bundles["int8"].path)!r}, {str(tmp_path / "out.mp4")!r})
print([m for m in ("transformers", "diffusers", "huggingface_hub", "PIL") if m in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_they_print(tmp_path: Path) -> None:
    bundle = quick_bundle(tmp_path, method="single")
    pipe = STDOPipeline.from_pretrained(bundle.path)
    path = str(bundle.path)
    assert repr(pipe) == f"STDOPipeline({path!r}, single, 48x40 -> 96x80, 12 frames)"
    assert repr(STDOPipeline(pipe.model)) == "STDOPipeline(1 x wdsr, no bundle)"
    assert repr(bundle) == f"Bundle({path!r}, 96x80, 12 frames, {bundle.kilobits:.0f} kbit/s)"
    assert repr(Player(bundle)) == f"Player({path!r}, 1 x wdsr x2, cpu)"
