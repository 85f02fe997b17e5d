"""A backbone and a method of one's own: a class and a row of the table, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.cli import main
from hf_efficient.methods import BACKBONES, VIDEO, Method
from hf_efficient.video.methods.single import Single
from hf_efficient.video.networks.backbones.backbone import Backbone, Conv
from hf_efficient.video.play.player import Player
from tests.video.bundles import quick_bundle


class Shallow(Backbone):
    """One layer at low resolution, then sub-pixel shuffle."""

    def __init__(self, scale: int, num_features: int, num_blocks: int, expansion: int = 4) -> None:
        super().__init__()
        self.scale, self.layer = scale, Conv(3, 3 * scale**2, 3)

    def forward(self, x: Tensor, trim: bool = False) -> Tensor:
        return F.pixel_shuffle(self.layer(x, trim), self.scale)

    @staticmethod
    def receptive_radius(scale: int, num_blocks: int) -> int:
        return 1

    @staticmethod
    def largest_activation(scale: int, num_features: int, expansion: int) -> int:
        return 3 * scale**2


class Hardest(Single):
    """One network on the hardest fifth of the patches."""

    def labels(self, errors: np.ndarray, k: int, edges: str) -> np.ndarray:
        return (errors.ravel() < np.quantile(errors, 0.8)).astype(np.int64)

    def training_patches(self, labels: np.ndarray, k: int, rng: np.random.Generator) -> list[np.ndarray]:
        return [np.flatnonzero(labels == 0)]


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shallow, hardest = Method("shallow", "one layer", "x:Shallow"), Method("hardest", "the hardest fifth", "x:Hardest")
    vars(shallow)["implementation"], vars(hardest)["implementation"] = Shallow, Hardest
    monkeypatch.setattr(BACKBONES, "methods", (*BACKBONES.methods, shallow))
    monkeypatch.setattr(VIDEO, "methods", (*VIDEO.methods, hardest))


def test_a_backbone_is_trained_stored_and_played(tmp_path: Path) -> None:
    player = Player(quick_bundle(tmp_path, backbone="shallow", weight_dtype="int8"))
    assert sorted(player.experts[0].state_dict()) == ["layer.bias", "layer.weight", "layer.weight_scale"]
    assert len(list(player.frames())) == 12


def test_a_method_chooses_its_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = quick_bundle(tmp_path, method="hardest", max_patches=1000)
    per_frame = bundle.geometry.rows * bundle.geometry.columns
    assert bundle.manifest["experts"][0]["patches"] == pytest.approx(0.2 * 12 * per_frame, abs=1)
    assert main(["stdo", "info", str(bundle.path)]) == 0
    assert "method hardest" in capsys.readouterr().out
