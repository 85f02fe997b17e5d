"""The bootstrap over photographs and scenes has the spread that theory says, and ratios are sums over sums."""

import numpy as np
import pytest

from benchmarks.harness.intervals import BOOTSTRAP_SAMPLES, Bootstrap, interval


def test_scenes_are_drawn_within_photographs_drawn() -> None:
    """The variance of the mean is that of two-stage sampling: between photographs, and within each."""
    rng = np.random.default_rng(5)
    photographs, scenes, questions = 12, 8, 3
    easy = rng.random(photographs)  # of the scenes on a photograph
    right = (rng.random((photographs, scenes, questions)) < easy[:, None, None]).astype(int)
    named = [f"p{number}" for number in range(photographs) for _ in range(scenes)]
    grades = [[bool(value) for value in row] for row in right.reshape(-1, questions)]
    drawn = Bootstrap([questions] * len(named), named).samples([grades])

    means = right.mean(2)
    between, within = means.mean(1).var(), means.var(1).mean()
    expected = np.sqrt((between + within / scenes) / photographs)
    assert drawn.std() == pytest.approx(expected, rel=0.05)
    assert drawn.mean() == pytest.approx(means.mean(), abs=4 * expected / np.sqrt(BOOTSTRAP_SAMPLES))
    alone = Bootstrap([questions] * len(named)).samples([grades])
    assert alone.std() == pytest.approx(np.sqrt(means.var() / means.size), rel=0.05)
    assert alone.std() < 0.7 * expected


def test_a_photograph_comes_with_as_many_scenes_as_were_made_on_it() -> None:
    counts = Bootstrap([1] * 7, ["a", "a", "b", "b", "b", None, None]).counts
    groups = np.stack([counts[:, :2].sum(1) / 2, counts[:, 2:5].sum(1) / 3, counts[:, 5], counts[:, 6]])
    assert set(np.unique(groups)) <= {0, 1, 2, 3, 4}
    assert (groups.sum(0) == 4).all()
    assert groups.mean(1) == pytest.approx(np.ones(4), abs=0.08)
    inside = counts[counts[:, :2].sum(1) == 2][:, 0]  # two scenes of one photograph, drawn twice: 1/4, 1/2, 1/4
    assert np.bincount(inside) / len(inside) == pytest.approx([0.25, 0.5, 0.25], abs=0.07)


def test_ratios_pool_models_and_scenes() -> None:
    bootstrap = Bootstrap([2, 2, 2])
    parts, wholes = np.array([[1, 0, 0], [0, 2, 0]]), np.array([[2, 1, 0], [1, 2, 0]])
    drawn = bootstrap.ratios(parts, wholes)
    models = np.random.default_rng(1).multinomial(2, [0.5, 0.5], BOOTSTRAP_SAMPLES)
    for sample, counts, shares in list(zip(drawn, bootstrap.counts, models, strict=True))[:40]:
        part = sum(shares[m] * counts[s] * parts[m, s] for m in range(2) for s in range(3))
        whole = sum(shares[m] * counts[s] * wholes[m, s] for m in range(2) for s in range(3))
        assert sample == pytest.approx(part / whole) if whole else np.isnan(sample)
    assert np.isnan(drawn).any()  # the third scene alone
    low, high = interval(drawn)
    assert 0 <= low < high <= 1
