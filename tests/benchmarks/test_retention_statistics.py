"""Intervals of the retention benchmark hold for scenes and for training seeds."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.representation.retention_statistics import accuracy, bootstrap_of, compare, leads_of, table
from hf_efficient.representation.evaluation.questions import Question, Scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    image = Image.new("RGB", (1, 1))
    asked = (Question("q", "a", "one"), Question("r", "b", "two"))
    return [Scene(str(i), image, asked[: 1 + i % 2]) for i in range(80)]


def grades(scenes: list[Scene], chance: float, seed: int) -> list[list[bool]]:
    rng = np.random.default_rng(seed)
    return [[bool(rng.random() < chance) for _ in scene.questions] for scene in scenes]


def test_one_model_is_the_plain_bootstrap_over_scenes(scenes):
    bootstrap, given = bootstrap_of(scenes), grades(scenes, 0.7, 0)
    for sample, counts in zip(bootstrap.samples([given])[:20], bootstrap.counts, strict=False):
        assert counts.sum() == len(scenes)
        answers = [right for scene, times in enumerate(counts) for right in given[scene] * times]
        assert sample == pytest.approx(np.mean(answers))


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not(scenes):
    bootstrap = bootstrap_of(scenes)
    sure, bad = [[[value for _ in scene.questions] for scene in scenes] for value in (True, False)]
    drawn = bootstrap.samples([sure, bad])  # whatever the scenes: 0, 1 or 2 of the two draws are the good model
    assert set(np.round(drawn, 6)) == {0.0, 0.5, 1.0}
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.04)
    one = grades(scenes, 0.7, 0)
    np.testing.assert_allclose(bootstrap.samples([one, one]), bootstrap.samples([one]))


def test_differences_are_paired_over_seeds(scenes):
    """Both methods lose the same with the bad seed: the difference is the same whichever seeds are drawn, namely one
    question of every drawn scene that asks two.
    """
    bootstrap = bootstrap_of(scenes)
    two = [len(scene.questions) == 2 for scene in scenes]  # such scenes have one question more right with the better
    better = [[[True, True] if t else [True] for t in two], [[True, False] if t else [False] for t in two]]
    worse = [[[True, False] if t else [True] for t in two], [[False, False] if t else [False] for t in two]]
    gap = bootstrap.samples(better) - bootstrap.samples(worse)
    drawn = [[t for t, times in zip(two, counts, strict=True) for _ in range(times)] for counts in bootstrap.counts]
    np.testing.assert_allclose(gap, [sum(ahead) / (len(ahead) + sum(ahead)) for ahead in drawn])
    assert np.std(bootstrap.samples(better)) > 2 * np.std(gap)


def test_a_lead_is_that_of_one_configuration_over_the_best_of_the_others(scenes):
    """A variant of ours that is better, and the best rival being another one at each budget, change nothing in it."""
    chances = {"id_pruner": 0.7, "itg": 0.8, "itg, refined": 0.99, "scope": 0.6, "tome, proportional attention": 0.75}
    here = {name: [grades(scenes, chance, seed)] for seed, (name, chance) in enumerate(chances.items())}
    bootstrap = bootstrap_of(scenes)
    leads = leads_of(here, bootstrap, ("id_pruner", "itg"))
    assert [lead["ours"] for lead in leads] == ["id_pruner", "itg"]
    assert {lead["rival"] for lead in leads} == {"tome, proportional attention"}
    for lead in leads:
        gap = accuracy(here[lead["ours"]]) - accuracy(here["tome, proportional attention"])
        assert lead["ahead"] == pytest.approx(gap, abs=1e-4)
        assert lead["interval"][0] < gap < lead["interval"][1]
    assert leads_of({"itg": here["itg"]}, bootstrap, ("itg",)) == []


def test_the_table_lists_every_model(scenes):
    models = [grades(scenes, chance, seed) for seed, chance in enumerate((0.5, 0.9))]
    graded = {("id_pruner", 0.5): models, ("scope", 0.5): models}
    result = {"first": "id_pruner", **compare(scenes, graded, models, models, 4, {0.5: 2}, ("id_pruner", "itg"))}
    each = ", ".join(f"{np.mean([right for row in one for right in row]):.1%}" for one in models)
    assert "each model" in table(result)
    assert f"| {each} |" in table(result)
