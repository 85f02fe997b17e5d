"""The scenes and questions of the VLM behind DINOv2, held against hand-made scenes and drawings read back."""

import json

import numpy as np
import pytest
from PIL import Image

from examples.photo_vlm import sources
from examples.photo_vlm.architecture import TOWER_LAYERS, VISUAL_TOKENS, make_processor, make_vlm
from examples.photo_vlm.data import PhotoTurns, retold, told
from examples.photo_vlm.questions import FAMILIES, box_words, vocabulary
from examples.photo_vlm.scenes import GRID, LAYOUTS, PATCH_SIDE, Item, Scene, compose_scene, patch_colors
from examples.photo_vlm.words import CHARTS, COLORS, EMOJI, GARMENTS, WORDS
from examples.tiny_vlm.data import IGNORED

ITEMS = (
    Item("cat", 0, (7, 14, 47, 54), {}),
    Item("word", 1, (80, 10, 140, 30), {"text": "park"}),
    Item("cat", 2, (160, 5, 190, 35), {}),
    Item("rocket", 4, (90, 90, 164, 150), {}),
    Item("number", 6, (0, 160, 60, 190), {"text": "47"}),
    Item("bars", 7, (80, 150, 140, 210), {"highest": "red", "lowest": "blue", "parts": "3"}),
    Item("dog", 8, (200, 200, 218, 218), {}, tiny=True),
)


def owner_of(items: tuple[Item, ...]) -> np.ndarray:
    """Index of the item over the middle of each patch, -1 for none: by looking at every patch."""
    found = np.full(GRID * GRID, -1)
    for patch in range(GRID * GRID):
        y, x = (PATCH_SIDE * at + PATCH_SIDE // 2 for at in divmod(patch, GRID))
        for index, item in enumerate(items):
            if item.box[0] <= x < item.box[2] and item.box[1] <= y < item.box[3]:
                found[patch] = index
    return found


OWNER = owner_of(ITEMS)
#: The upper half of the chart shows black, the lower red.
COLORED = np.where(OWNER != 5, -1, np.where(np.arange(GRID * GRID) // GRID < 13, list(COLORS).index("black"), 0))
SCENE = Scene(np.zeros((224, 224, 3), np.uint8), ITEMS, OWNER, "moon", COLORED)
RIGHT = {
    "what is at top-left ?": "cat", "what is at center ?": "rocket", "what is at left ?": "nothing",
    "what is at bottom-left ?": "number", "where is the rocket ?": "center", "where is the dog ?": "bottom-right",
    "how many cat ?": "2", "how many dog ?": "1", "how many objects ?": "7", "is there a cat ?": "yes",
    "is there a word ?": "yes", "what is left of the word ?": "cat", "what is below the word ?": "rocket",
    "what is above the bars ?": "rocket", "what is right of the number ?": "bars",
    "what is left of the number ?": "nothing",
    "what is above the dog ?": "cat", "read what is at top .": "park", "read what is at bottom-left .": "4 7",
    "point to the rocket .": "<x12> <x12> <x23> <x21>", "what is the tiny thing ?": "dog",
    "what is the highest in the bars ?": "red", "what is the lowest in the bars ?": "blue",
    "what is the number of parts in the bars ?": "3", "which is larger , the rocket or the dog ?": "rocket",
    "which is larger , the dog or the rocket ?": "rocket",
}  # fmt: skip


def asked(seeds: int = 400) -> dict[str, str]:
    turns = (ask(np.random.default_rng(seed), SCENE) for seed in range(seeds) for ask in FAMILIES.values())
    return dict(turn for turn in turns if turn is not None)


@pytest.mark.parametrize(("side", "there"), [(20, True), (21, False)])
def test_the_tiny_thing_is_asked_for_where_no_other_is_nearly_as_small(side: int, there: bool) -> None:
    dog = Item("dog", 8, (190, 190, 190 + side, 200), {}, tiny=True)  # the smallest of the others, a cat, has 30 pixels
    scene = Scene(SCENE.pixels, (*ITEMS[:-1], dog), OWNER, "moon", COLORED)
    assert (FAMILIES["detail"](np.random.default_rng(0), scene) is not None) == there


def test_answers_are_those_read_off_by_hand():
    given = asked()
    missing = [question for question in RIGHT if question not in given]
    assert not missing
    assert {question: given[question] for question in RIGHT} == RIGHT


def test_what_is_ambiguous_is_not_asked():
    given = asked()
    assert not any("the cat" in question for question in given)  # two of them
    assert "which is the largest ?" not in given  # 74 against 60 is not clear
    assert not any(question.startswith("point to the dog") for question in given)  # tiny


def test_absent_kinds_are_denied_and_counted_as_none():
    given = asked()
    names = {item.name for item in ITEMS}
    denied = {q.split()[3] for q, a in given.items() if q.startswith("is there") and a == "no"}
    none = {q.split()[2] for q, a in given.items() if q.startswith("how many") and a == "0"}
    assert denied
    assert none
    assert not (denied | none) & names


def test_every_word_is_in_the_vocabulary():
    known = set(vocabulary())
    assert {word for turn in asked().items() for text in turn for word in text.split()} <= known
    assert len(set(EMOJI)) == 200
    assert set(WORDS) | set(GARMENTS) <= known


def test_coordinates_stay_on_the_image():
    assert box_words(Item("cat", 8, (0, 0, 224, 224), {})) == "<x0> <x0> <x31> <x31>"


def test_a_scene_is_told_and_retold():
    again = retold(json.loads(json.dumps(told(SCENE))))
    assert (again.items, again.photograph) == (SCENE.items, "moon")
    assert [item.facts for item in again.items] == [item.facts for item in ITEMS]
    np.testing.assert_array_equal(again.owner, SCENE.owner)
    np.testing.assert_array_equal(again.colors, SCENE.colors)


def test_no_photograph_is_in_two_splits():
    names = [name for split in sources.SPLITS.values() for name in split]
    assert len(names) == len(set(names)) >= 70
    assert len(sources.SPLITS["test"]) >= 20


def test_tokens_say_what_they_show():
    tokenizer = make_processor().tokenizer
    features = np.zeros((1, 1 + VISUAL_TOKENS, 384), np.float16)
    data = PhotoTurns([(features, [SCENE])], tokenizer, 20, seed=0)
    words: dict[int, set[str]] = {index: set() for index in range(-1, len(ITEMS))}
    for number in range(20):
        labels = data[number]["labels"][1 : 1 + VISUAL_TOKENS]  # the token at i is trained to say the label at i + 1
        for patch in range(VISUAL_TOKENS - 1):
            said = int(labels[patch + 1])
            words[SCENE.owner[patch]].add("" if said == IGNORED else tokenizer.convert_ids_to_tokens(said))
    assert words[-1] == {""}
    assert words[0] == {"cat", "top-left"}
    assert words[1] == {"p", "a", "r", "k", "park", "word", "top"}
    assert words[4] == {"4", "7", "number", "bottom-left"}
    assert words[5] == {"black", "red", "bars", "bottom"}  # red is also the highest
    assert words[6] == {"dog", "tiny", "bottom-right"}


def test_the_color_of_a_patch_is_that_of_the_part_of_a_chart_over_it():
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[:14, :14], pixels[:14, 14:18], pixels[:14, 28:30] = (
        np.array(COLORS[name]) + 9 for name in ("red", "blue", "green")
    )
    found = patch_colors(pixels[..., :3])
    assert [list(COLORS)[at] if at >= 0 else None for at in found[:3]] == ["red", "black", "black"]
    pixels[:14, 18:] = 255
    assert [list(COLORS)[at] if at >= 0 else None for at in patch_colors(pixels)[:3]] == ["red", "blue", None]


def test_every_scene_of_every_pool_comes_once_in_a_round_with_its_own_features():
    tokenizer = make_processor().tokenizer
    pools = [(np.full((n, 1 + VISUAL_TOKENS, 384), 0, np.float16), [SCENE] * n) for n in (3, 2)]
    for at, features in enumerate((pools[0][0], pools[1][0])):
        features += (10 * at + np.arange(len(features)))[:, None, None].astype(np.float16)
    data = PhotoTurns(pools, tokenizer, 10, seed=0)
    seen = [data[number]["pixel_values"][0, 0].item() for number in range(10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 10, 11]
    assert seen[:5] != seen[5:]


def test_a_token_says_the_letter_over_its_middle():
    tokenizer = make_processor().tokenizer
    features = np.zeros((1, 1 + VISUAL_TOKENS, 384), np.float16)
    data = PhotoTurns([(features, [SCENE])], tokenizer, 40, seed=1)
    letters: dict[int, set[str]] = {
        at: set() for at in range(5, 10)
    }  # columns of the word's plate, 80 to 140: a letter every 15 pixels
    for number in range(40):
        labels = data[number]["labels"][1 : 1 + VISUAL_TOKENS]
        for column in letters:
            said = tokenizer.convert_ids_to_tokens(max(0, int(labels[GRID + column + 1])))
            letters[column] |= {said} & set("park")
    middles = {column: PATCH_SIDE * column + 7 for column in letters}
    expected = {c: {"park"[min(3, max(0, (x - 80) // 15))]} if 80 <= x < 140 else set() for c, x in middles.items()}
    assert letters == expected


def test_model_and_processor_agree_on_the_number_of_tokens():
    processor = make_processor()
    model = make_vlm(processor.tokenizer)
    inputs = processor(images=Image.new("RGB", (224, 224)), text="<image> what is at top ?", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == VISUAL_TOKENS
    assert len(model.model.vision_tower.encoder.layer) == TOWER_LAYERS
    rest = sum(p.numel() for n, p in model.named_parameters() if "vision_tower" not in n)
    assert 2 * rest <= 12e6  # bytes shipped, as float16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_composed_scenes_hold_what_they_say(layout):
    if not (sources.CACHE / "x").exists():
        pytest.skip("photographs are not fetched (python -m examples.photo_vlm.sources)")
    from examples.tiny_vlm.scenes import FASHION_MNIST, load_fashion_mnist

    if not FASHION_MNIST.exists():
        pytest.skip("Fashion-MNIST is not installed (Debian's dataset-fashion-mnist)")
    garments = load_fashion_mnist("t10k")
    for number in range(6):
        scene, again = (compose_scene(np.random.default_rng(number), garments, LAYOUTS[layout]) for _ in range(2))
        np.testing.assert_array_equal(scene.pixels, again.pixels)
        assert len({item.place for item in scene.items}) == len(scene.items)
        for index, item in enumerate(scene.items):
            left, top, right, bottom = item.box
            column, row = item.place % 3 * 74, item.place // 3 * 74
            assert column <= left < right <= column + 74
            assert row <= top < bottom <= row + 74
            middle = (top + bottom) // 2 // PATCH_SIDE * GRID + (left + right) // 2 // PATCH_SIDE
            assert scene.owner[middle] == index
            assert (scene.colors[scene.owner == index] >= 0).any() == (item.name in CHARTS)


def test_families_that_are_learned_last_are_asked_of_every_scene():
    tokenizer = make_processor().tokenizer
    features = np.zeros((1, 1 + VISUAL_TOKENS, 384), np.float16)
    data = PhotoTurns([(features, [SCENE])], tokenizer, 12, 0, turns=4, name_patches=False, first=("chart", "detail"))
    for number in range(12):
        row = data[number]
        asked = tokenizer.decode(row["input_ids"][1 + VISUAL_TOKENS :])
        assert "in the bars ?" in asked
        assert "tiny thing ?" in asked
        assert int(row["turn"].max()) == 4
        assert (row["labels"][: 1 + VISUAL_TOKENS] == IGNORED).all()
