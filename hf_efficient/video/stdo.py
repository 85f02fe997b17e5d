"""Which patches are learned together: chunks of like difficulty (STDO), a sample of them (JSTDO), chunks of time (NAS).

Everything works on one number a patch: the mean squared error that a general model f0 makes on it. Chunk 0 is the
hardest. Pure numpy.
"""

from __future__ import annotations

import numpy as np

MOST_CHUNKS = 6
STEPS_EACH = 3000  # from which a network of several pays, measured (docs/stdo.md)
JOINT_CHUNKS = 4


def equal_count(errors: np.ndarray, k: int) -> np.ndarray:
    """D̂_m = {P : λ_m < p ≤ λ_{m+1}} with thresholds that split the patches evenly (STDO, section 3).

    λ_m = p_(⌊mn/k⌋), the order statistic of the PSNRs p of all n patches of the video: space and time together.

    Args:
        errors: (n,) mean squared error by f0.
        k: chunks.

    Returns:
        (n,) int64 in [0, k): 0 is the hardest chunk. Equal errors share a chunk.

    Raises:
        ValueError: an error is negative or NaN, or k is not in [1, n].
    """
    _check(errors, k)
    p = -errors  # rises with the PSNR
    n = len(p)
    thresholds = np.sort(p)[[m * n // k - 1 for m in range(1, k)]]
    return np.searchsorted(thresholds, p, side="left")


def equal_error(errors: np.ndarray, k: int) -> np.ndarray:
    """Chunks that carry the same share of the squared error, instead of the same number of patches. Ours.

    The hardest patches fill chunk 0 until it holds 1/k of the error, and so on: with equal counts the last of six
    networks would learn 1 % of it. Arguments, result and Raises: as `equal_count`.
    """
    _check(errors, k)
    order = np.argsort(-errors, kind="stable")
    total = errors.sum(dtype=np.float64)
    if total <= 0:
        return equal_count(errors, k)
    before = np.concatenate([[0.0], np.cumsum(errors[order], dtype=np.float64)[:-1]])  # error of the harder ones
    labels = np.empty(len(errors), np.int64)
    labels[order] = np.minimum((before / total * k).astype(np.int64), k - 1)
    return labels


def time_chunks(frames: int, patches: int, k: int) -> np.ndarray:
    """k equal stretches of time, as NAS: (frames·patches,) labels in order t, i, j."""
    if not 1 <= k <= frames:
        raise ValueError(f"{frames} frames cannot be split into {k} stretches of time; expected 1 to {frames}.")
    return np.repeat(np.arange(frames) * k // frames, patches)


def joint_sample(labels: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """D_joint = D̂_0 ∪ S(D̂_1; r_1) ∪ … ∪ S(D̂_{k-2}; r_{k-2}), the training set of JSTDO's one network.

    S(D; r) is a uniform random subset of ⌊r·|D|⌋ patches. The paper lets r fall gradually from 1 for the hardest chunk
    to 0 for the easiest; its values are not public. Ours fall in equal steps: r_m = 1 - m / (k - 1).

    Args:
        labels: (n,) chunk of each patch, 0 the hardest.
        k: chunks; 1 keeps everything.
        rng: draws the subsets.

    Returns:
        Sorted indices of the patches kept.
    """
    if k == 1:
        return np.arange(len(labels))
    kept = []
    for m in range(k - 1):
        chunk = np.flatnonzero(labels == m)
        kept.append(rng.permutation(chunk)[: len(chunk) * (k - 1 - m) // (k - 1)])
    return np.sort(np.concatenate(kept))


def hardest(errors: np.ndarray, share: float) -> np.ndarray:
    """Sorted indices of the hardest `share` of the patches, as EMT trains on (there: 0.2)."""
    count = max(1, round(share * len(errors)))
    return np.sort(np.argsort(-errors, kind="stable")[:count])


def error_shares(errors: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """(k,) share of the squared error that lies in each chunk; all equal where there is no error."""
    total = errors.sum(dtype=np.float64)
    if total <= 0:
        return np.full(k, 1 / k)
    return np.bincount(labels, weights=errors, minlength=k) / total


def choose_num_chunks(errors: np.ndarray, steps: int, most: int = MOST_CHUNKS) -> int:
    """k="auto": as many networks as there are chunks' worth of error, and as get `STEPS_EACH` steps. Ours.

    A network costs the same bytes whatever error it removes. With e the error shares of `most` equal-count chunks,
    exp(H(e)) = exp(-Σ e_m ln e_m) is the number of equally loaded networks with the same entropy: `most` when all
    chunks matter alike, 1 when one carries everything. Rounded down. With few of the `steps` for each, one network on
    everything was better wherever it was measured.
    """
    most = min(most, len(errors))
    shares = error_shares(errors, equal_count(errors, most), most)
    shares = shares[shares > 0]
    worth = int(np.exp(-(shares * np.log(shares)).sum()) + 1e-9)
    return max(1, min(worth, steps // STEPS_EACH))


def _check(errors: np.ndarray, k: int) -> None:
    if not len(errors) or not (errors >= 0).all():
        raise ValueError("Errors of patches must be numbers >= 0, at least one of them.")
    if not 1 <= k <= len(errors):
        raise ValueError(f"{len(errors)} patches cannot be split into {k} chunks; expected 1 to {len(errors)}.")
