"""What every method decides: which network is trained on which patches, and which network plays each patch."""

from __future__ import annotations

import numpy as np


class Assignment:
    """A method of `FitSettings`.

    Attributes:
        per_chunk: whether each chunk has a network of its own. If not, there is one network, and no map is sent.
        starts_from_general: whether the network is a general one of the package, and what is sent its delta.
        sample_suffices: whether `auto_chunks` may be asked about a sample of frames, before all are scored.
    """

    per_chunk = True
    starts_from_general = False
    sample_suffices = False

    def auto_chunks(self, errors: np.ndarray, steps: int) -> int:
        """k where num_chunks="auto".

        Args:
            errors: (n,) mean squared error of each patch by f0.
            steps: training steps of all networks together.
        """
        raise NotImplementedError

    def labels(self, errors: np.ndarray, k: int, edges: str) -> np.ndarray:
        """The chunk of each patch.

        Args:
            errors: (T, I·J) mean squared error of each patch by f0.
            k: chunks.
            edges: chunks of equal "count" of patches, or of equal "error".

        Returns:
            (T·I·J,) int64 in [0, k), in order t, i, j.
        """
        raise NotImplementedError

    def training_patches(self, labels: np.ndarray, k: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The patches that each network is trained on, as sorted indices into `labels`.

        Args:
            labels: (n,) chunk of each patch.
            k: chunks.
            rng: draws samples, where the method has any.
        """
        return [np.flatnonzero(labels == m) for m in range(k)]
