"""Flicker is what changes where the source stands still."""

import math

import numpy as np
import pytest

from hf_efficient.video.measure.flicker import Flicker

RNG = np.random.default_rng(0)
STANDING = RNG.uniform(0, 255, (30, 44))  # not whole blocks


def of(played: list[np.ndarray], source: list[np.ndarray]) -> Flicker:
    flicker = Flicker()
    for p, q in zip(played, source, strict=True):
        flicker.add(p, q)
    return flicker


def test_an_error_that_stays_does_not_flicker() -> None:
    still = of([STANDING + 20] * 3, [STANDING] * 3)
    assert (still.value, still.share) == (0, 1)


def test_an_error_that_comes_and_goes_does() -> None:
    errors = [RNG.normal(0, 3, STANDING.shape) for _ in range(40)]
    found = of([STANDING + e for e in errors], [STANDING] * 40)
    assert found.value == pytest.approx(3 * math.sqrt(2), rel=0.02)  # the difference of two of them


def test_only_what_stands_still_is_counted() -> None:
    moved = STANDING.copy()
    moved[:16, :24] += 40  # six blocks
    noise = np.where(np.arange(44) < 24, 50, 2) * np.ones((30, 1))
    noise[16:] = 2
    found = of([STANDING, moved + noise], [STANDING, moved])
    assert found.value == pytest.approx(2)
    assert found.share == pytest.approx(1 - 16 * 24 / (30 * 44))


def test_the_noise_of_the_source_is_not_the_player_s() -> None:
    source = [STANDING + RNG.uniform(-0.5, 0.5, STANDING.shape) for _ in range(4)]
    assert of(source, source).value == 0
    assert math.isnan(of([STANDING, STANDING], [STANDING, 255 - STANDING]).value)
