"""The scenes and questions that the tiny VLM learns from say what is in the image."""

from collections import Counter

import numpy as np
import pytest

from examples.tiny_vlm.questions import FAMILIES, vocabulary
from examples.tiny_vlm.scenes import GARMENTS, GRID, KINDS, LAYOUTS, PLACE_SIDE, PLACES, Item, Scene, compose_scene


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """Stand-ins for Fashion-MNIST: bright squares."""
    return {word: np.full((3, 28, 28), 200, np.uint8) for word in GARMENTS}


def scene_of(*items: tuple[str, int, int]) -> Scene:
    """A scene of (word, place, side), without pixels."""
    laid = tuple(
        Item(word, place, side, place // 3 * PLACE_SIDE, place % 3 * PLACE_SIDE) for word, place, side in items
    )
    return Scene(np.zeros((96, 96), np.uint8), laid, np.full(GRID * GRID, -1))


def every_answer(family: str, scene: Scene) -> dict[str, str]:
    rng = np.random.default_rng(0)
    return dict(turn for turn in (FAMILIES[family](rng, scene) for _ in range(300)) if turn is not None)


def test_answers_by_hand():
    scene = scene_of(("boot", 3, 20), ("sandal", 5, 31), ("bag", 6, 24), ("bag", 7, 16))
    assert every_answer("at", scene) == {
        "what is at left ?": "boot",
        "what is at right ?": "sandal",
        "what is at bottom-left ?": "bag",
        "what is at bottom ?": "bag",
    } | {f"what is at {place} ?": "nothing" for place in ("top-left", "top", "top-right", "center", "bottom-right")}
    assert every_answer("count", scene) == {
        "how many garments ?": "4", "how many boots ?": "1", "how many sandals ?": "1", "how many bags ?": "2",
        "how many trousers ?": "0", "how many pullovers ?": "0",
    }  # fmt: skip
    assert every_answer("exists", scene) == {
        f"is there a {word} ?": "yes" if word in ("boot", "sandal", "bag") else "no" for word in KINDS
    }
    assert every_answer("where", scene) == {"where is the boot ?": "left", "where is the sandal ?": "right"}
    assert every_answer("left_of", scene) == {
        "what is left of the sandal ?": "boot", "what is left of the boot ?": "nothing",
    }  # fmt: skip
    assert every_answer("largest", scene) == {"which is the largest ?": "sandal"}
    assert every_answer("list", scene) == {"list all .": "bag boot sandal"}


def test_the_largest_is_asked_for_only_where_it_is_clear():
    assert every_answer("largest", scene_of(("boot", 0, 20), ("sandal", 1, 22))) == {}
    assert every_answer("largest", scene_of(("boot", 0, 30))) == {}


def test_a_scene_is_its_seed(images):
    first, again, other = (compose_scene(np.random.default_rng(seed), images) for seed in (4, 4, 5))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.items == again.items
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_garments_lie_inside_their_places_and_own_the_patches_they_cover(images, layout):
    for seed in range(50):
        scene = compose_scene(np.random.default_rng(seed), images, LAYOUTS[layout])
        assert LAYOUTS[layout].items[0] <= len(scene.items) <= LAYOUTS[layout].items[1]
        for number, item in enumerate(scene.items):
            row, column = divmod(item.place, 3)
            assert row * PLACE_SIDE <= item.top <= item.top + item.side <= (row + 1) * PLACE_SIDE
            assert column * PLACE_SIDE <= item.left <= item.left + item.side <= (column + 1) * PLACE_SIDE
            assert scene.owner[item.centre_patch] == number
            owned = np.argwhere(scene.owner.reshape(GRID, GRID) == number) * 8 + 4  # middles of the patches it owns
            assert (np.abs(owned - [item.top + item.side / 2, item.left + item.side / 2]) <= item.side / 2 + 4).all()


def test_answers_are_balanced_and_in_the_vocabulary(images):
    rng, words = np.random.default_rng(0), set(vocabulary())
    answers: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}
    for seed in range(2000):
        scene = compose_scene(np.random.default_rng(seed), images)
        for family, ask in FAMILIES.items():
            turn = ask(rng, scene)
            if turn is not None:
                answers[family][turn[1]] += 1
                assert set(" ".join(turn).split()) <= words
    share = {family: max(counts.values()) / sum(counts.values()) for family, counts in answers.items()}
    assert share["exists"] < 0.54
    assert share["at"] < 0.2
    assert share["where"] < 0.15
    assert share["largest"] < 0.25
    assert share["left_of"] < 0.45
    assert share["count"] < 0.45
    assert share["list"] < 0.1
    assert set(answers["where"]) == set(PLACES)
