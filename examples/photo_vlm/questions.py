"""Eleven families of questions about a scene, each with answers balanced so that guessing scores low."""

from collections import Counter

import numpy as np

from examples.tiny_vlm.questions import pick

from .scenes import BINS, IMAGE_SIDE, PLACES, Item, Scene
from .words import CHARTS, COLORS, EMOJI, GARMENTS, LETTERS, NAMED, TEXT_KINDS, WORDS

NOTHING = "nothing"
COUNTS = tuple(str(number) for number in range(10))
X = tuple(f"<x{bin}>" for bin in range(BINS))
#: Asked to the largest, and to compare, only where sides differ by this factor.
CLEARLY = 1.3

Question = tuple[str, str]


def what(rng: np.random.Generator, scene: Scene) -> Question:
    """What is at a place; one time in eight a free place."""
    by_place = {item.place: item.name for item in scene.items}
    free = [place for place in range(9) if place not in by_place]
    place = pick(rng, free) if free and rng.random() < 1 / 8 else pick(rng, list(by_place))
    return f"what is at {PLACES[place]} ?", by_place.get(place, NOTHING)


def where(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Where the only object of its kind is."""
    unique = _unique(scene)
    return (f"where is the {(item := pick(rng, unique)).name} ?", PLACES[item.place]) if unique else None


def count(rng: np.random.Generator, scene: Scene) -> Question:
    """How many of one kind, each number that occurs equally often, zero too; or how many objects in all."""
    if rng.random() < 0.25:
        return "how many objects ?", COUNTS[len(scene.items)]
    numbers = Counter(item.name for item in scene.items if item.name in NAMED)
    number = pick(rng, sorted({0, *numbers.values()}))
    words = [word for word in numbers if numbers[word] == number] or _absent(scene)
    return f"how many {pick(rng, words)} ?", COUNTS[number]


def exists(rng: np.random.Generator, scene: Scene) -> Question:
    """Is there an object of a kind: yes and no equally often."""
    there = sorted({item.name for item in scene.items})
    if rng.random() < 0.5:
        return f"is there a {pick(rng, there)} ?", "yes"
    return f"is there a {pick(rng, _absent(scene))} ?", "no"


def relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The next object on one side, in the same row or column; one time in eight there is none."""
    side, step, row = pick(
        rng, [("left of", -1, True), ("right of", 1, True), ("above", -3, False), ("below", 3, False)]
    )
    found = {item: _neighbour(scene, item, step, row) for item in _unique(scene)}
    empty = rng.random() < 1 / 8
    candidates = [item for item, other in found.items() if (other is None) == empty]
    if not candidates:
        return None
    other = found[item := pick(rng, candidates)]
    return f"what is {side} the {item.name} ?", other.name if other else NOTHING


def largest(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Which object is the largest, where one clearly is."""
    ranked = sorted(scene.items, key=lambda item: item.side)
    if len(ranked) < 2 or ranked[-1].side < CLEARLY * ranked[-2].side:
        return None
    return "which is the largest ?", ranked[-1].name


def compare(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Which of two objects is larger, where one clearly is."""
    pairs = [(a, b) for a in _unique(scene) for b in _unique(scene) if a.side >= CLEARLY * b.side]
    if not pairs:
        return None
    larger, smaller = pick(rng, pairs)
    first, second = (larger, smaller) if rng.random() < 0.5 else (smaller, larger)
    return f"which is larger , the {first.name} or the {second.name} ?", larger.name


def read(rng: np.random.Generator, scene: Scene) -> Question | None:
    """What is written at a place: a word, or a number digit by digit."""
    texts = [item for item in scene.items if item.name in TEXT_KINDS]
    if not texts:
        return None
    item = pick(rng, texts)
    text = item.facts["text"]
    return f"read what is at {PLACES[item.place]} .", text if item.name == "word" else " ".join(text)


def point(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The box of the only object of its kind: left, top, right, bottom in steps of 7 pixels."""
    unique = [item for item in _unique(scene) if not item.tiny]
    return (f"point to the {(item := pick(rng, unique)).name} .", box_words(item)) if unique else None


def detail(rng: np.random.Generator, scene: Scene) -> Question | None:
    """What the tiny object is, where every other one is half as large again: else two would do for an answer."""
    tiny = next((item for item in scene.items if item.tiny), None)
    if tiny is None or any(item.side < 1.5 * tiny.side for item in scene.items if item is not tiny):
        return None
    return "what is the tiny thing ?", tiny.name


def chart(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The color of the largest or smallest part of the chart, or the number of its parts."""
    charts = [item for item in scene.items if item.name in CHARTS]
    if not charts:
        return None
    asked, fact = pick(rng, [("highest", "highest"), ("lowest", "lowest"), ("number of parts", "parts")])
    return f"what is the {asked} in the {charts[0].name} ?", charts[0].facts[fact]


FAMILIES = {
    "what": what, "where": where, "count": count, "exists": exists, "relation": relation, "largest": largest,
    "compare": compare, "read": read, "point": point, "detail": detail, "chart": chart,
}  # fmt: skip


def box_words(item: Item) -> str:
    """The item's frame as four words."""
    step = IMAGE_SIDE // BINS
    return " ".join(X[min(BINS - 1, edge // step)] for edge in item.box)


def vocabulary() -> list[str]:
    """Every word that questions and answers use, each once."""
    asked = """what is at where the how many objects there a left right of above below which largest larger , or read .
    point to tiny thing highest lowest number parts in word ?""".split()
    answers = ["yes", "no", NOTHING, *PLACES, *COUNTS, *X, *COLORS, *WORDS, *TEXT_KINDS, *CHARTS]
    return list(dict.fromkeys([*asked, *answers, *EMOJI, *GARMENTS, *LETTERS]))


def _absent(scene: Scene) -> list[str]:
    there = {item.name for item in scene.items}
    return [name for name in NAMED if name not in there]


def _unique(scene: Scene) -> list[Item]:
    numbers = Counter(item.name for item in scene.items)
    return [item for item in scene.items if numbers[item.name] == 1]


def _neighbour(scene: Scene, item: Item, step: int, row: bool) -> Item | None:
    by_place = {other.place: other for other in scene.items}
    at = item.place + step
    while 0 <= at < 9 and (not row or at // 3 == item.place // 3):
        if at in by_place:
            return by_place[at]
        at += step
    return None
