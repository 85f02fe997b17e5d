"""Training data behind the frozen tower: features of all scenes, made once, and questions drawn anew each time."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from examples.tiny_vlm.data import IGNORED, pack_turns, sample_turns, visual_positions
from examples.tiny_vlm.encoded import encode_images
from examples.tiny_vlm.scenes import PLACES
from hf_efficient.files import write_text

from .questions import FAMILIES
from .scenes import GRID, IMAGE_SIDE, PATCH_SIDE, Item, Scene
from .words import COLORS


def encode_scenes(
    tower: PreTrainedModel, image_processor: Any, compose: Callable[[int], Scene], count: int, folder: Path
) -> None:
    """What the tower says of `count` scenes, into `folder`, unless it is there.

    Writes `features.npy`, (S, 1 + N, D) float16, the last hidden states before the final norm, and `scenes.jsonl`, what
    the scenes show.
    """
    if (folder / "scenes.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []

    def image(number: int) -> Image.Image:
        scene = compose(number)
        lines.append(json.dumps(told(scene)))
        return scene.image()

    encode_images(tower, -1, image_processor, image, count, folder / "features.npy")
    write_text(folder / "scenes.jsonl", "\n".join(lines) + "\n")


def told(scene: Scene) -> dict[str, Any]:
    """A scene without its pixels, for JSON."""
    return {
        "photograph": scene.photograph, "owner": scene.owner.tolist(), "colors": scene.colors.tolist(),
        "items": [asdict(item) for item in scene.items],
    }  # fmt: skip


def retold(values: dict[str, Any]) -> Scene:
    """The scene that `told` told of; its image is empty."""
    items = tuple(Item(**{**item, "box": tuple(item["box"])}) for item in values["items"])
    empty = np.zeros((IMAGE_SIDE, IMAGE_SIDE, 0), np.uint8)
    return Scene(empty, items, np.array(values["owner"]), values["photograph"], np.array(values["colors"]))


def load_encoded(folder: Path) -> tuple[np.ndarray, list[Scene]]:
    """Features (S, 1 + N, D) float16, mapped from the file, and the scenes without pixels."""
    features = np.load(folder / "features.npy", mmap_mode="r")
    return features, list(_scenes(folder / "scenes.jsonl"))


def _scenes(path: Path) -> Iterator[Scene]:
    with path.open() as file:
        for line in file:
            yield retold(json.loads(line))


@dataclass
class PhotoTurns(Dataset):
    """Scenes with many question-answer turns each, packed as `examples.tiny_vlm.data.TurnData` packs them.

    `pools`: features (S, 1 + N, D) and what the scenes show, of each layout, as `load_encoded` gives them. Families in
    `first` are asked once of every scene that they fit. With `name_patches`, a visual token that shows an object is
    also trained to say one of four things: what is there (the object, the letter or digit, the color of the part of a
    chart), all that is written, its place, or what is asked about it as a whole (the highest part of a chart, that it
    is tiny).
    """

    pools: list[tuple[np.ndarray, list[Scene]]]
    tokenizer: PreTrainedTokenizerFast
    length: int
    seed: int
    turns: int = 36
    name_patches: bool = True
    first: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._ids = self.tokenizer.get_vocab()
        self._places = [(features, at, scene) for features, scenes in self.pools for at, scene in enumerate(scenes)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, at = divmod(index, len(self._places))
        number = int(np.random.default_rng((self.seed, epoch)).permutation(len(self._places))[at])
        features, row, scene = self._places[number]
        rng = np.random.default_rng((self.seed, index, 1))
        start = [0, *visual_positions(rng, len(scene.owner))]
        names = self._names(rng, scene) if self.name_patches else None
        turns = sample_turns(rng, scene, self.turns, self.first, FAMILIES)
        shown = torch.from_numpy(features[row].astype(np.float32))
        return {"pixel_values": shown, **pack_turns(self._ids, start, turns, names)}

    def _names(self, rng: np.random.Generator, scene: Scene) -> list[int]:
        """What each visual token is trained to say: ids of words, `IGNORED` for the photograph."""
        column = np.arange(len(scene.owner)) % GRID
        said = np.full((4, len(scene.owner)), IGNORED)
        for index, item in enumerate(scene.items):
            shown = np.flatnonzero(scene.owner == index)
            written = item.facts.get("text", "")
            across = (PATCH_SIDE * (column[shown] + 0.5) - item.box[0]) / (item.box[2] - item.box[0])
            under = np.clip((across * len(written)).astype(int), 0, max(0, len(written) - 1))  # letter or digit there
            said[0][shown] = [self._ids[written[at] if written else item.name] for at in under]
            said[1][shown] = self._ids[written if item.name == "word" else item.name]
            said[2][shown] = self._ids[PLACES[item.place]]
            said[3][shown] = self._ids["tiny" if item.tiny else item.facts.get("highest", item.name)]
        colored = np.flatnonzero(scene.colors >= 0)
        said[0][colored] = [self._ids[list(COLORS)[color]] for color in scene.colors[colored]]
        return said[rng.integers(0, 4, len(scene.owner)), np.arange(len(scene.owner))].tolist()
