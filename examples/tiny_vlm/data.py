"""Training data made on the fly: scene number n is the same in every run, so that training resumes exactly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from .architecture import IMAGE, MAX_ITEMS, PIXEL_MEAN, PIXEL_STD
from .questions import FAMILIES
from .scenes import GARMENTS, GRID, LAYOUTS, PLACES, Images, Layout, Scene, compose_scene

VISUAL_TOKENS = GRID * GRID
IGNORED = -100
_KIND = {word: number for number, word in enumerate(GARMENTS, start=1)}


@dataclass
class PatchData(Dataset):
    """Scenes with what each patch shows, for `PatchReader`."""

    images: Images
    length: int
    seed: int = 0
    layout: Layout = LAYOUTS["standard"]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene = compose_scene(np.random.default_rng((self.seed, index)), self.images, self.layout)
        kind = np.array([0, *(_KIND[item.word] for item in scene.items)])
        place = np.array([IGNORED, *(item.place for item in scene.items)])
        size = np.array([0, *(item.side / 32 for item in scene.items)], np.float32)
        middle = np.zeros(VISUAL_TOKENS, np.float32)
        middle[[item.centre_patch for item in scene.items]] = 1
        numbers = np.bincount(kind[1:], minlength=len(GARMENTS) + 1)
        numbers[0] = len(scene.items)
        numbers = numbers.clip(max=MAX_ITEMS)
        owner = scene.owner + 1
        return {
            "pixel_values": pixel_values(scene), "kind": torch.from_numpy(kind[owner]),
            "place": torch.from_numpy(place[owner]), "size": torch.from_numpy(size[owner]),
            "middle": torch.from_numpy(middle), "numbers": torch.from_numpy(numbers),
        }  # fmt: skip


@dataclass
class TurnData(Dataset):
    """Scenes with many question-answer turns each, packed into one sequence behind one image.

    Every turn attends to the image and to itself, and its positions start right behind the image: exactly what
    it meets at test time, where it is asked alone. One pass over the image pays for all its turns.

    In half of the scenes the positions of the visual tokens are squeezed or stretched at random (in order, several may
    share one), so that the model learns to read places from what the tokens say, as large models do, and not from
    how far back a token stands.

    `first` names question families asked about every scene that they fit: those that come up too rarely by chance.
    With `name_patches`, a visual token that shows a garment is also trained to say that garment's word or, at random,
    the word of its place: this aligns the projector with the language model before questions ground in it.
    """

    images: Images
    tokenizer: PreTrainedTokenizerFast
    length: int
    turns: int = 20
    seed: int = 1
    name_patches: bool = False
    first: tuple[str, ...] = ()
    layout: Layout = LAYOUTS["standard"]

    def __post_init__(self) -> None:
        self._ids = self.tokenizer.get_vocab()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        scene, shown = self._look(rng, index)
        start = [0, *visual_positions(rng, VISUAL_TOKENS)]
        names = self._names(rng, scene) if self.name_patches else None
        turns = sample_turns(rng, scene, self.turns, self.first)
        return {"pixel_values": shown, **pack_turns(self._ids, start, turns, names)}

    def _look(self, rng: np.random.Generator, index: int) -> tuple[Scene, Tensor]:
        """The scene of this index and what the model gets to see of it."""
        scene = compose_scene(rng, self.images, self.layout)
        return scene, pixel_values(scene)

    def _names(self, rng: np.random.Generator, scene: Scene) -> list[int]:
        """What each visual token is trained to say: ids of words, `IGNORED` for background."""
        words = np.array([[self._ids[item.word], self._ids[PLACES[item.place]]] for item in scene.items])
        return np.where(scene.owner >= 0, words[scene.owner, rng.integers(0, 2, VISUAL_TOKENS)], IGNORED).tolist()


def pack_turns(
    ids_of: Mapping[str, int], start: list[int], turns: Sequence[tuple[str, str]], names: list[int] | None = None
) -> dict[str, Tensor]:
    """A sequence of <s>, the visual tokens and all turns, each a question and its answer.

    Args:
        ids_of: id of every word.
        start: positions of <s> and of the visual tokens.
        turns: questions and answers.
        names: what each visual token is trained to say, or None.

    Returns:
        `input_ids`, `turn` (0 for what all turns see, then 1, 2, ...), `position_ids` and `labels`, each (L,) long.
    """
    ids = [ids_of["<s>"], *[ids_of[IMAGE]] * (len(start) - 1)]
    turn, positions, labels = [0] * len(ids), list(start), [IGNORED] * len(ids)
    if names is not None:
        labels[2:] = names[:-1]
    for number, (question, answer) in enumerate(turns, start=1):
        asked = [ids_of[word] for word in question.split()]
        told = [*(ids_of[word] for word in answer.split()), ids_of["</s>"]]
        ids += asked + told
        turn += [number] * (len(asked) + len(told))
        positions += range(start[-1] + 1, start[-1] + 1 + len(asked) + len(told))
        labels += [IGNORED] * len(asked) + told
    return {
        "input_ids": torch.tensor(ids), "turn": torch.tensor(turn), "position_ids": torch.tensor(positions),
        "labels": torch.tensor(labels),
    }  # fmt: skip


def visual_positions(rng: np.random.Generator, count: int) -> list[int]:
    """Positions of `count` visual tokens: 1 to `count`, or, half of the time, a random rise to 1/24 to 3/2 of it."""
    if rng.random() < 0.5:
        return list(range(1, count + 1))
    pace = np.exp(rng.uniform(np.log(1 / 24), np.log(1.5)))
    return (1 + np.floor(rng.exponential(pace, count).cumsum())).astype(int).tolist()


def sample_turns(
    rng: np.random.Generator,
    scene: Any,
    turns: int,
    first: tuple[str, ...] = (),
    ask: Mapping[str, Callable[[np.random.Generator, Any], tuple[str, str] | None]] = FAMILIES,
) -> list[tuple[str, str]]:
    """Distinct questions about `scene`: one of each family in `first` that fits it, the rest of the families `ask`
    drawn equally often; fewer than `turns` where no more are found.
    """
    families, asked = list(ask.values()), {}
    wanted = [ask[family] for family in first]
    for number in range(2 * turns):
        family = wanted[number] if number < len(wanted) else families[rng.integers(len(families))]
        turn = family(rng, scene)
        if turn is not None:
            asked[turn[0]] = turn[1]
        if len(asked) == turns:
            break
    return list(asked.items())


def collate_turns(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad on the right and build the (B, 1, L, L) mask under which no turn sees another."""
    pad = lambda name, value: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], True, value)  # noqa: E731
    turn = pad("turn", -1)
    length = turn.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (turn[:, None, :] == 0) | (turn[:, None, :] == turn[:, :, None])
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "input_ids": pad("input_ids", 0), "position_ids": pad("position_ids", 0), "labels": pad("labels", IGNORED),
        "attention_mask": (causal & same)[:, None],
    }  # fmt: skip


def pixel_values(scene: Scene) -> Tensor:
    """(3, 96, 96) float32, as the processor's image processor makes it of `scene.image()`."""
    pixels = torch.from_numpy((scene.pixels.astype(np.float32) / 255 - PIXEL_MEAN) / PIXEL_STD)
    return pixels.expand(3, -1, -1)
