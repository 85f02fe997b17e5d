"""Where answers go wrong: rates over kinds of questions, calibration, and what plain resizing gets wrong."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness.intervals import BOOTSTRAP_SAMPLES, interval
from benchmarks.representation.retention_statistics import bootstrap_of
from hf_efficient.representation.evaluation.questions import Scene

BINS = 15


@dataclass(frozen=True)
class Said:
    """What models said to all questions of an evaluation set, scene after scene; arrays (models, questions).

    Attributes:
        right: bool.
        yes: bool, whether "yes" was said.
        confidence: the probability that the model gave its answer.
    """

    right: np.ndarray
    yes: np.ndarray
    confidence: np.ndarray


class Sheet:
    """The questions of an evaluation set, and rates of what was said to them with 95 % intervals.

    Args:
        scenes: what was asked.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        asked = [(number, question) for number, scene in enumerate(scenes) for question in scene.questions]
        self.scenes = len(scenes)
        self.scene = np.array([number for number, _ in asked])
        self.family = np.array([question.family for _, question in asked])
        self.answer = np.array([question.answer for _, question in asked])
        self.bootstrap = bootstrap_of(scenes)

    def of(self, families: Collection[str]) -> np.ndarray:
        """(questions,) whether a question is of one of the families."""
        return np.isin(self.family, list(families))

    def rate(self, part: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
        """How many of the `whole` are in the `part`; both are bool, (models, questions) or the same for all models."""
        whole = np.broadcast_to(whole, np.atleast_2d(part).shape)
        both = np.atleast_2d(part) & whole
        value = round(float(both.sum() / whole.sum()), 4) if whole.any() else None
        if value is None:
            return {"value": None, "interval": None, "questions": 0}
        samples = self.bootstrap.ratios(self._by_scene(both), self._by_scene(whole))
        return {"value": value, "interval": interval(samples), "questions": int(whole.sum())}

    def difference(self, one: np.ndarray, other: np.ndarray, of: np.ndarray) -> dict[str, Any]:
        """By how much `one` is right more often than `other` on questions `of` these, on the same samples.

        Both are bool, or shares of several methods that are right: (models, questions).
        """
        whole = np.broadcast_to(of, one.shape)
        gap = self._by_scene(one * whole) - self._by_scene(other * whole)
        value = round(float(gap.sum() / whole.sum()), 4)
        return {"value": value, "interval": interval(self.bootstrap.ratios(gap, self._by_scene(whole)))}

    def false_yes(self, said: Said, exists: str = "exists") -> dict[str, Any]:
        """How often "yes" is said where the right answer is "no"."""
        return self.rate(said.yes, self.of([exists]) & (self.answer == "no"))

    def missed(self, said: Said, exists: str = "exists") -> dict[str, Any]:
        """How often something else is said where the right answer is "yes"."""
        return self.rate(~said.yes, self.of([exists]) & (self.answer == "yes"))

    def hard(self, said: Said, resized: Said) -> dict[str, Any]:
        """Accuracy on the questions that each model gets wrong when it is shown a smaller image (VTC-Bench's rule)."""
        return self.rate(said.right, ~resized.right)

    def calibration_error(self, said: Said) -> dict[str, Any]:
        """Expected calibration error (Guo et al., ICML 2017): |right - confidence| over 15 bins of confidence, summed.

        The interval's ends are those of the bootstrap, whose errors are larger than that of the sample they come from:
        chance alone parts right and confidence in a bin.
        """
        bins = np.clip(np.ceil(said.confidence * BINS).astype(int) - 1, 0, BINS - 1)
        value, drawn = 0.0, np.zeros(BOOTSTRAP_SAMPLES)
        for number in range(BINS):
            gap = np.where(bins == number, said.right - said.confidence, 0.0)
            value += abs(gap.sum())
            drawn += np.abs(self.bootstrap.sums(self._by_scene(gap)))
        total = self.bootstrap.sums(self._by_scene(np.ones_like(said.right)))
        return {"value": round(value / said.right.size, 4), "interval": interval(drawn / total)}

    def overconfidence(self, said: Said) -> dict[str, Any]:
        """Mean confidence minus accuracy."""
        gap, ones = said.confidence - said.right, np.ones_like(said.right)
        drawn = self.bootstrap.ratios(self._by_scene(gap), self._by_scene(ones))
        return {"value": round(float(gap.mean()), 4), "interval": interval(drawn)}

    def _by_scene(self, values: np.ndarray) -> np.ndarray:
        """Sums over the questions of each scene: (models, questions) -> (models, scenes)."""
        return np.array([np.bincount(self.scene, row, self.scenes) for row in values.astype(float)])
