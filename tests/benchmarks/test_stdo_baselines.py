"""What the peers of STDO are trained on."""

import numpy as np

from benchmarks.video.stdo_baselines import hardest


def test_hardest() -> None:
    errors = np.array([0.1, 0.9, 0.5, 0.2, 0.7])
    assert hardest(errors, 0.4).tolist() == [1, 4]
