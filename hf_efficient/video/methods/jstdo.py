"""JSTDO: one network on a data-aware sample of STDO's chunks (Li et al., CVPR 2023, arXiv 2303.08331)."""

from __future__ import annotations

import numpy as np

from .stdo import STDO

JOINT_CHUNKS = 4


def joint_sample(labels: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """D_joint = D̂_0 ∪ S(D̂_1; r_1) ∪ … ∪ S(D̂_{k-2}; r_{k-2}), the training set of JSTDO's one network.

    S(D; r) is a uniform random subset of ⌊r·|D|⌋ patches. The paper lets r fall gradually from 1 for the hardest chunk
    to 0 for the easiest; its values are not public. Ours fall in equal steps: r_m = 1 - m / (k - 1).

    Args:
        labels: (n,) chunk of each patch, 0 the hardest.
        k: chunks; 1 keeps everything.
        rng: draws the subsets.

    Returns:
        Sorted indices of the patches that are kept.
    """
    if k == 1:
        return np.arange(len(labels))
    kept = []
    for m in range(k - 1):
        chunk = np.flatnonzero(labels == m)
        kept.append(rng.permutation(chunk)[: len(chunk) * (k - 1 - m) // (k - 1)])
    return np.sort(np.concatenate(kept))


class JSTDO(STDO):
    """STDO's chunks, and one network that is trained on `joint_sample` of them."""

    per_chunk = False
    sample_suffices = False

    def auto_chunks(self, errors: np.ndarray, steps: int) -> int:
        """JOINT_CHUNKS: levels of sampling cost nothing."""
        return min(JOINT_CHUNKS, len(errors))

    def training_patches(self, labels: np.ndarray, k: int, rng: np.random.Generator) -> list[np.ndarray]:
        """One sample."""
        return [joint_sample(labels, k, rng)]
