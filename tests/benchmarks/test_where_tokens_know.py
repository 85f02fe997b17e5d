"""Seeing some tokens only is the same as having no others; attention that is cut carries nothing; probes read."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from benchmarks.representation import where_tokens_know
from benchmarks.representation.limited_sight import CUTS, LimitedSight, Watch, look, watched
from benchmarks.representation.object_scenes import ObjectScene, scenes_of
from benchmarks.representation.packed_turns import answer_scenes
from benchmarks.representation.token_probes import by_group, probe
from benchmarks.representation.where_tokens_know import VIEWS
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.evaluation.questions import TINY_VLM, load_evaluation_set, load_vlm


@pytest.fixture(scope="module")
def vlm() -> tuple[Any, Any]:
    return load_vlm()


class Noted:
    """Keeps the logits of the answers that a model gives behind `prefix` tokens."""

    def __init__(self, model: Any, prefix: int) -> None:
        self.model, self.prefix, self.logits = model, prefix, list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, **inputs: Any) -> Any:
        made = self.model(**inputs)
        self.logits.append(made.logits[:, self.prefix :])
        return made


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_seeing_some_tokens_is_having_no_others(vlm: tuple[Any, Any], positions: str) -> None:
    model, processor = vlm
    scenes = load_evaluation_set(limit=3)
    every = {question.family for scene in scenes for question in scene.questions}
    config = TokenPrunerConfig(method="divprune", budget=5, positions=positions, proportional_attention=False)
    with token_pruner(model, processor, config):
        pruned = Noted(model, 6)
        expected = answer_scenes(pruned, processor, scenes, settle=every)
        kept = [unit.indices for unit in model.base_model.token_pruner.last]
    pixels = processor.image_processor([scene.image for scene in scenes], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = torch.stack(list(model.base_model.get_image_features(pixels, return_dict=True).pooler_output))
    visible = torch.zeros(3, 144, dtype=torch.bool).scatter(1, torch.stack(kept), True)
    noted = Noted(model, 145)
    sight = LimitedSight(noted, features, visible, [s.name for s in scenes], positions == "compact")
    said = answer_scenes(sight, processor, scenes, vision_inputs=sight.look, settle=every)
    torch.testing.assert_close(noted.logits[0], pruned.logits[0], atol=2e-4, rtol=1e-4)
    assert [[one.words for one in row] for row in said] == [[one.words for one in row] for row in expected]
    assert len({len(logits) for logits in noted.logits}) > 1  # some scenes were read again without the others


def scene(rng: np.random.Generator, owner: np.ndarray, paint: int | None = None) -> ObjectScene:
    """Noise, with the patches of the objects in one grey or in noise."""
    pixels = np.repeat(rng.integers(0, 256, (96, 96, 1), np.uint8), 3, 2)
    if paint is not None:
        pixels[np.kron(owner >= 0, np.ones((8, 8), bool))] = paint
    base = load_evaluation_set(limit=1)[0]
    return ObjectScene(type(base)("drawn", Image.fromarray(pixels), base.questions), owner)


def test_attention_that_is_cut_carries_nothing(vlm: tuple[Any, Any]) -> None:
    """Background that sees neither objects nor [CLS] is the same whatever the objects are; else it is not."""
    owner = np.full((12, 12), -1)
    owner[3:6, 4:9] = 0
    shown = [scene(np.random.default_rng(0), owner, grey) for grey in (20, 230)]
    background = torch.from_numpy(owner.ravel() < 0)
    gap = {}
    for cut in CUTS:
        dark, bright = look(*vlm, shown, cut).features
        gap[cut] = float((dark - bright)[background].abs().max())
    assert gap["background to objects and [CLS]"] < 1e-4
    assert min(gap[cut] for cut in CUTS if cut != "background to objects and [CLS]") > 1e-2


def test_watching_changes_nothing_and_shares_add_up(vlm: tuple[Any, Any]) -> None:
    model, processor = vlm
    owner = np.full((12, 12), -1)
    owner[0, :3] = 0
    shown = [scene(np.random.default_rng(1), owner)]
    pixels = processor.image_processor([shown[0].scene.image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        plain = model.base_model.get_image_features(pixels, return_dict=True).pooler_output[0]
        tower = model.base_model.vision_tower
        tower.set_attn_implementation("eager")
        whole = tower(pixels, output_attentions=True).attentions[0].mean(1)[0]
        tower.set_attn_implementation("sdpa")
    looks = look(model, processor, shown)
    torch.testing.assert_close(looks.features[0], plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(looks.flow.sum(-1), torch.ones(5, 3))
    objects, rest = [1, 2, 3], list(range(4, 145))
    assert float(looks.flow[0, 2, 1]) == pytest.approx(float(whole[objects][:, rest].sum(1).mean()), rel=1e-4)
    assert float(looks.flow[0, 1, 0]) == pytest.approx(float(whole[rest][:, 0].mean()), rel=1e-4)
    with watched(tower, Watch(())):
        pass
    assert tower.config._attn_implementation == "sdpa"


def test_distances_and_nearest_objects_are_those_of_all_pairs() -> None:
    owner = np.random.default_rng(2).choice([-1, -1, -1, -1, -1, -1, 0, 1], (9, 7))
    one = scene(np.random.default_rng(2), owner)
    at = np.argwhere(owner >= 0)
    for index, (row, column) in enumerate(np.ndindex(9, 7)):
        steps = np.abs(at - (row, column)).max(1)
        assert one.distance[index] == steps.min()
        assert one.nearest[index] in {owner[tuple(place)] for place in at[steps == steps.min()]}
    seen = {view: set(np.flatnonzero(rule(one.distance))) for view, rule in VIEWS.items()}
    assert seen["objects (0)"] | seen["background (from 1)"] == seen["all"] == set(range(63))
    assert seen["beside them (1)"] | seen["from 2"] == seen["background (from 1)"]


def without_objects(seed: int, layout: str, count: int) -> list[ObjectScene]:
    return [scene(np.random.default_rng(seed), np.full((12, 12), -1)) for _ in range(count)]


def test_scenes_without_objects_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 scenes of .* show no object, 'drawn' first"):
        scenes_of(f"{__name__}:without_objects", 0, "standard", 2)


def with_objects(seed: int, layout: str, count: int) -> list[ObjectScene]:
    return [scene(np.random.default_rng(seed), np.arange(144).reshape(12, 12) % 5 - 1) for _ in range(count)]


def coarse(seed: int, layout: str, count: int) -> list[ObjectScene]:
    return [scene(np.random.default_rng(seed), np.arange(16).reshape(4, 4) - 1) for _ in range(count)]


def save_tower(folder: Path, side: int) -> str:
    """A CLIP encoder with random weights, of images of so many pixels alone."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(image_size=side, patch_size=8, **sizes)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return str(folder)


HERE = f"--source {__name__}:with_objects --scenes 2"
PHOTOS = "benchmarks.representation.object_scenes:photo_scenes"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--source object_scenes", "source 'object_scenes': No module named .* expected MODULE:FUNCTION, such as"),
        ("--source nowhere:scenes", "source 'nowhere:scenes': No module named 'nowhere'; expected MODULE:FUNCTION"),
        (f"--source {__name__}:none", "source .*:none': module .* has no attribute 'none'; expected MODULE:FUNCTION"),
        ("--scenes 0", "--scenes: '0' is not a whole number >= 1"),
        ("--scenes -1", "--scenes: '-1' is not a whole number >= 1"),
        ("--layout standrd", "'standrd' is not a layout of scenes; expected one of 'standard'"),
        (f"--source {PHOTOS} --layout crowd", "'crowd' is not a layout of scenes; expected one of 'standard'"),
        (f"--source {__name__}:without_objects --scenes 2", "2 scenes of .* show no object"),
        (f"{HERE} --model {{tmp}}/none", "none"),
        (f"--source {__name__}:coarse --scenes 2", "makes 144 tokens of an image, and the scenes say what 16 patches"),
        (f"{HERE} --tower {{tmp}}/none", "tower '.*none' cannot be loaded: "),
        (f"{HERE} --tower {TINY_VLM}", "tower '.*tiny_vlm' is a LlavaModel; expected an encoder of images alone"),
        (f"{HERE} --tower {{tmp}}/small --layer -1", "tower '.*small' takes no images of 12 x 12 patches: "),
        (f"{HERE} --tower {{tmp}}/right", r"layer -6 is not one of '.*right'; expected a number from -3 to 2\."),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    save_tower(tmp_path / "small", 32)
    save_tower(tmp_path / "right", 96)
    given = words.replace("{tmp}", str(tmp_path)).split()
    monkeypatch.setattr("sys.argv", ["where_tokens_know", *given, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        where_tokens_know.main()
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "out").exists()


def test_an_encoder_alone_is_looked_at(tmp_path: Path) -> None:
    words = [*HERE.split(), "--tower", save_tower(tmp_path / "right", 96), "--layer", "-1", "--output", str(tmp_path)]
    study = where_tokens_know.Study(where_tokens_know.parser().parse_args(words))
    assert look(study.model, study.processor, study.scenes).features.shape == (2, 144, 16)


def test_a_probe_reads_what_is_there_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (40, 50), generator=generator)
    tokens = torch.randn(40, 50, 12, generator=generator)
    tokens[..., :3] += 6 * torch.nn.functional.one_hot(labels, 3)
    groups = torch.arange(50).expand(40, -1) // 20  # the third is not asked
    tokens[:, 20:40] = torch.randn(40, 20, 12, generator=generator)
    told, untold = by_group(tokens, labels, groups, 2)
    assert told is not None
    assert untold is not None
    assert told[0] > 0.95
    assert abs(untold[0] - 1 / 3) < 0.1
    assert told[1] == pytest.approx(1 / 3, abs=0.06)
    assert probe(tokens[0], labels[0], tokens[1], labels[1]) is None
