"""How sure a mean is: intervals over seeds by Student's t, standard errors, the bootstrap over scenes and seeds."""

import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np

BOOTSTRAP_SAMPLES = 2000
Grades = list[list[bool]]  # for every scene one bool per question


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; nan for one value."""
    from scipy import stats  # not on a bare machine, where tables without intervals are written

    n = len(values)
    return float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Standard error of a mean; 0 for one value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


class Bootstrap:
    """Resamples photographs, scenes on them, and training seeds, alike for all methods: differences are paired.

    Photographs are drawn with replacement, then of every drawn one as many scenes as were made on it, with replacement.
    A scene of which no photograph is known stands alone: where none is, this is the plain bootstrap over scenes.

    Args:
        questions: number of questions about each scene.
        photographs: what each scene was made on, where that is known.

    Attributes:
        counts: (BOOTSTRAP_SAMPLES, scenes), how often each scene is in each sample.
    """

    def __init__(self, questions: Sequence[int], photographs: Sequence[str | None] | None = None) -> None:
        self.questions = np.array(questions)
        groups: dict[object, list[int]] = {}
        for scene, photograph in enumerate(photographs or [None] * len(questions)):
            groups.setdefault(scene if photograph is None else photograph, []).append(scene)
        self.counts = _draw(list(groups.values()), len(questions))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(BOOTSTRAP_SAMPLES,) sums of values (models, scenes) over what is drawn.

        Where there are several models, as many are drawn with replacement.
        """
        models = len(values)
        drawn = np.random.default_rng(1).multinomial(models, [1 / models] * models, BOOTSTRAP_SAMPLES)
        total: np.ndarray = (drawn * (self.counts @ np.asarray(values, float).T)).sum(1)
        return total

    def ratios(self, parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
        """(BOOTSTRAP_SAMPLES,) sums of `parts` over sums of `wholes`; a sample whose whole is 0 is nan."""
        whole = self.sums(wholes)
        return np.divide(self.sums(parts), whole, out=np.full(BOOTSTRAP_SAMPLES, np.nan), where=whole > 0)

    def samples(self, graded: Sequence[Grades]) -> np.ndarray:
        """(BOOTSTRAP_SAMPLES,) accuracies: means over models drawn with replacement from those in `graded`."""
        right = np.array([[sum(row) for row in grades] for grades in graded])
        return self.ratios(right, np.broadcast_to(self.questions, right.shape))


def _draw(groups: list[list[int]], scenes: int) -> np.ndarray:
    """How often each scene is drawn: groups with replacement, then in each of those its scenes."""
    rng = np.random.default_rng(0)
    counts = np.zeros((BOOTSTRAP_SAMPLES, scenes), np.int64)
    times = rng.multinomial(len(groups), [1 / len(groups)] * len(groups), BOOTSTRAP_SAMPLES)
    for group, drawn in zip(groups, times.T, strict=True):
        # one draw of n scenes, t times over, is one draw of t n scenes
        counts[:, group] = rng.multinomial(drawn * len(group), [1 / len(group)] * len(group))
    return counts


def interval(samples: np.ndarray) -> list[float]:
    """The 95 % interval of bootstrap samples, of which those that are nan count for nothing."""
    return [round(float(value), 4) for value in np.nanpercentile(samples, [2.5, 97.5])]
