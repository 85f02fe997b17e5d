"""Seven families of questions about a scene, each with answers balanced so that guessing scores low."""

from collections import Counter
from typing import Any

import numpy as np

from .scenes import KINDS, PLACES, Item, Scene

NOTHING = "nothing"
PLURALS = {"trouser": "trousers", "pullover": "pullovers", "sandal": "sandals", "bag": "bags",
           "boot": "boots"}  # fmt: skip
COUNTS = tuple(str(number) for number in range(8))
#: Asked to the largest only where it leads by so many pixels of its side.
LARGEST_MARGIN = 4

Question = tuple[str, str]


def at(rng: np.random.Generator, scene: Scene) -> Question:
    """What is at a place; one time in six a free place."""
    by_place = {item.place: item.word for item in scene.items}
    free = [place for place in range(9) if place not in by_place]
    place = pick(rng, free) if rng.random() < 1 / 6 else pick(rng, list(by_place))
    return f"what is at {PLACES[place]} ?", by_place.get(place, NOTHING)


def count(rng: np.random.Generator, scene: Scene) -> Question:
    """How many of one kind (each number that occurs, zero too, equally often), or how many garments in all."""
    if rng.random() < 0.3:
        return "how many garments ?", COUNTS[len(scene.items)]
    numbers = _numbers(scene)
    number = pick(rng, sorted({numbers[word] for word in KINDS}))
    word = pick(rng, [word for word in KINDS if numbers[word] == number])
    return f"how many {PLURALS[word]} ?", COUNTS[number]


def exists(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Is there a garment of a kind: yes and no equally often."""
    numbers = _numbers(scene)
    present = rng.random() < 0.5
    words = [word for word in KINDS if (numbers[word] > 0) == present]
    return (f"is there a {pick(rng, words)} ?", "yes" if present else "no") if words else None


def where(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Where the only garment of its kind is."""
    unique = _unique(scene)
    if not unique:
        return None
    item = pick(rng, unique)
    return f"where is the {item.word} ?", PLACES[item.place]


def left_of(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The nearest garment on the left in the same row; one time in six there is none."""
    neighbours = {item: _left_neighbour(scene, item) for item in _unique(scene)}
    empty = rng.random() < 1 / 6
    candidates = [item for item, neighbour in neighbours.items() if (neighbour is None) == empty]
    if not candidates:
        return None
    item = pick(rng, candidates)
    neighbour = neighbours[item]
    return f"what is left of the {item.word} ?", neighbour.word if neighbour else NOTHING


def largest(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Which garment is the largest, where one clearly is."""
    sides = sorted((item.side for item in scene.items), reverse=True)
    if len(sides) < 2 or sides[0] - sides[1] < LARGEST_MARGIN:
        return None
    return "which is the largest ?", max(scene.items, key=lambda item: item.side).word


def list_all(rng: np.random.Generator, scene: Scene) -> Question:
    """All kinds that are there, in alphabetical order."""
    return "list all .", " ".join(sorted({item.word for item in scene.items}))


FAMILIES = {
    "at": at, "count": count, "exists": exists, "where": where, "left_of": left_of, "largest": largest,
    "list": list_all,
}  # fmt: skip


def vocabulary() -> list[str]:
    """Every word that questions and answers use, each once."""
    asked = "what is at how many garments there a where the left of which largest list all ? .".split()
    return list(dict.fromkeys([*asked, *KINDS, *PLURALS.values(), *PLACES, *COUNTS, "yes", "no", NOTHING]))


def pick(rng: np.random.Generator, options: list) -> Any:
    """One of the options, each as likely."""
    return options[rng.integers(len(options))]


def _numbers(scene: Scene) -> Counter[str]:
    return Counter(item.word for item in scene.items)


def _unique(scene: Scene) -> list[Item]:
    numbers = _numbers(scene)
    return [item for item in scene.items if numbers[item.word] == 1]


def _left_neighbour(scene: Scene, item: Item) -> Item | None:
    row = [other for other in scene.items if other.place // 3 == item.place // 3 and other.place < item.place]
    return row[-1] if row else None
