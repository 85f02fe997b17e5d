"""How sure a mean is: intervals over seeds by Student's t, standard errors, and the bootstrap over scenes and seeds."""

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np
from scipy import stats

BOOTSTRAP_SAMPLES = 2000
Grades = list[list[bool]]  # for every scene one bool per question


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; nan for one value."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Standard error of a mean; 0 for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


class Bootstrap:
    """Resamples scenes, and training seeds where there are several, alike for all methods: differences are paired.

    Args:
        questions: number of questions about each scene.
    """

    def __init__(self, questions: Sequence[int]) -> None:
        rng = np.random.default_rng(0)
        self.picks = rng.integers(0, len(questions), (BOOTSTRAP_SAMPLES, len(questions)))
        self.questions = np.array(questions)

    def samples(self, graded: Sequence[Grades]) -> np.ndarray:
        """(BOOTSTRAP_SAMPLES,) accuracies: means over models drawn with replacement from those in `graded`."""
        right = np.array([[sum(row) for row in grades] for grades in graded])
        count, total = len(graded), self.questions[self.picks].sum(1)
        drawn = np.random.default_rng(1).multinomial(count, [1 / count] * count, BOOTSTRAP_SAMPLES) / count
        return sum(share * one[self.picks].sum(1) for share, one in zip(drawn.T, right, strict=True)) / total


def interval(samples: np.ndarray) -> list[float]:
    """The 95 % interval of bootstrap samples."""
    return [round(float(value), 4) for value in np.percentile(samples, [2.5, 97.5])]
