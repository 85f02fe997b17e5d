"""Chunks against brute force, and against what is known of the published label file (vlog_15, x2)."""

import numpy as np
import pytest

from hf_efficient.video.methods.jstdo import joint_sample
from hf_efficient.video.methods.stdo import choose_num_chunks, equal_count, equal_error, error_shares
from hf_efficient.video.methods.time import time_chunks


def published_errors() -> np.ndarray:
    """90,000 errors with the quantiles of the published PSNRs, linear between them.

    Only the shape below the 5th percentile is open: the power 8 gives the published PSNR of the mean error.
    """
    n = 90_000
    u = (np.arange(n) + 0.5) / n * 100
    p = np.interp(u, [5, 25, 50, 75, 95, 100], [41.15, 48.81, 51.33, 54.55, 64.72, 77.34])
    p[u < 5] = 41.15 - (41.15 - 28.66) * (1 - u[u < 5] / 5) ** 8
    return 10 ** (-np.random.default_rng(0).permutation(p) / 10)


def brute_force_equal_count(errors: np.ndarray, k: int) -> list[int]:
    p, n = -10 * np.log10(errors), len(errors)
    ordered = sorted(p)
    bounds = [-np.inf, *(ordered[m * n // k - 1] for m in range(1, k)), np.inf]
    return [next(m for m in range(k) if bounds[m] < value <= bounds[m + 1]) for value in p]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_equal_count_by_brute_force(k: int) -> None:
    errors = np.random.default_rng(k).lognormal(-8, 2, 101)
    labels = equal_count(errors, k)
    assert labels.tolist() == brute_force_equal_count(errors, k)
    counts = np.bincount(labels, minlength=k)
    assert counts.max() - counts.min() <= 1
    for m in range(1, k):
        assert errors[labels == m - 1].min() > errors[labels == m].max()


def test_perfect_patches_are_the_easiest() -> None:
    labels = equal_count(np.array([0.0, 0.3, 0.2, 0.0]), 2)
    assert labels.tolist() == [1, 0, 0, 1]


def test_shares_of_the_published_labels() -> None:
    errors = published_errors()
    assert -10 * np.log10(errors.mean()) == pytest.approx(47.33, abs=0.02)
    published = {2: [90.8, 9.2], 4: [77.4, 13.3, 7.3, 1.9], 6: [70.2, 12.4, 8.1, 5.4, 3.1, 0.7]}
    for k, percent in published.items():
        labels = equal_count(errors, k)
        assert set(np.bincount(labels)) == {90_000 // k}
        np.testing.assert_allclose(error_shares(errors, labels, k) * 100, percent, atol=2)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_equal_error_shares_the_error(k: int) -> None:
    errors = published_errors()
    labels = equal_error(errors, k)
    np.testing.assert_allclose(error_shares(errors, labels, k), 1 / k, atol=1e-3)
    assert (np.diff(np.bincount(labels)) > 0).all()  # the easier, the more patches
    for m in range(1, k):
        assert errors[labels == m - 1].min() >= errors[labels == m].max()


def test_equal_error_without_error() -> None:
    assert set(equal_error(np.zeros(10), 2)) <= {0, 1}


def test_joint_sample_keeps_falling_shares() -> None:
    labels = np.repeat(np.arange(4), 300)
    kept = joint_sample(labels, 4, np.random.default_rng(0))
    assert np.bincount(labels[kept], minlength=4).tolist() == [300, 200, 100, 0]
    assert len(set(kept)) == len(kept)
    again = joint_sample(labels, 4, np.random.default_rng(0))
    assert np.array_equal(kept, again)
    assert joint_sample(labels, 1, np.random.default_rng(0)).tolist() == list(range(1200))
    assert set(labels[joint_sample(labels, 2, np.random.default_rng(0))]) == {0}


def test_time_chunks_are_equal_stretches() -> None:
    labels = time_chunks(10, 3, 4).reshape(10, 3)
    assert (labels == labels[:, :1]).all()
    assert labels[:, 0].tolist() == sorted(labels[:, 0])
    assert np.bincount(labels[:, 0]).tolist() == [3, 2, 3, 2]


def test_number_of_chunks_follows_the_error() -> None:
    long = 100_000
    assert choose_num_chunks(np.ones(600) * np.linspace(1, 1.001, 600), long) == 5  # just below six equal shares
    assert choose_num_chunks(np.concatenate([np.linspace(1, 2, 100), np.full(500, 1e-12)]), long) == 1
    # 70.2/12.4/8.1/5.4/3.1/0.7 %, the published shares of six chunks: exp(entropy) = 2.7
    shares = [0.702, 0.124, 0.081, 0.054, 0.031, 0.007]
    errors = np.concatenate([s / 1000 * np.linspace(1.001, 0.999, 1000) for s in shares])
    assert choose_num_chunks(errors, long) == 2
    assert choose_num_chunks(np.array([0.5]), long) == 1


@pytest.mark.parametrize(("steps", "k"), [(1, 1), (1500, 1), (5999, 1), (6000, 2), (9000, 3), (10**6, 5)])
def test_no_more_networks_than_there_are_steps_for(steps: int, k: int) -> None:
    assert choose_num_chunks(np.linspace(1, 1.001, 600), steps) == k


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_chunks(k: int) -> None:
    for split in (equal_count, equal_error):
        with pytest.raises(ValueError, match="cannot be split"):
            split(np.ones(5), k)
    with pytest.raises(ValueError, match="numbers >= 0"):
        equal_count(np.array([1.0, np.nan]), 1)
    with pytest.raises(ValueError, match="time segments"):
        time_chunks(5, 2, k)
