"""STDO: a network for each chunk of patches of like difficulty (Li et al., CVPR 2023, arXiv 2303.08331)."""

from __future__ import annotations

import numpy as np

from .assignment import Assignment

MOST_CHUNKS = 6
STEPS_EACH = 3000  # from which a network of several pays, measured (docs/stdo.md)


def equal_count(errors: np.ndarray, k: int) -> np.ndarray:
    """D̂_m = {P : λ_m < p ≤ λ_{m+1}} with thresholds λ that split the patches evenly. D̂_0 is the hardest chunk.

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


def error_shares(errors: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """(k,) share of the squared error that lies in each chunk; all equal where there is no error."""
    total = errors.sum(dtype=np.float64)
    if total <= 0:
        return np.full(k, 1 / k)
    return np.bincount(labels, weights=errors, minlength=k) / total


def choose_num_chunks(errors: np.ndarray, steps: int, most: int = MOST_CHUNKS) -> int:
    """k="auto": as many networks as there are equally loaded chunks, each with at least `STEPS_EACH` steps. Ours.

    A network costs the same bytes whatever error it removes. With e the error shares of `most` equal-count chunks,
    exp(H(e)) = exp(-Σ e_m ln e_m) is the number of equally loaded networks with the same entropy: `most` when all
    chunks matter alike, 1 when one carries everything. Rounded down. With few `steps` for each network, one network on
    everything was better wherever it was measured.
    """
    most = min(most, len(errors))
    shares = error_shares(errors, equal_count(errors, most), most)
    shares = shares[shares > 0]
    equally_loaded = int(np.exp(-(shares * np.log(shares)).sum()) + 1e-9)
    return max(1, min(equally_loaded, steps // STEPS_EACH))


class STDO(Assignment):
    """A network for each chunk of similar difficulty, and a map that says which patch is in which chunk."""

    sample_suffices = True

    def auto_chunks(self, errors: np.ndarray, steps: int) -> int:
        """See `choose_num_chunks`."""
        return choose_num_chunks(errors, steps)

    def labels(self, errors: np.ndarray, k: int, edges: str) -> np.ndarray:
        """By `equal_count`, as published, or by `equal_error`."""
        return (equal_error if edges == "error" else equal_count)(errors.ravel(), k)


def _check(errors: np.ndarray, k: int) -> None:
    if not len(errors) or not (errors >= 0).all():
        raise ValueError("Errors of patches must be numbers >= 0, at least one of them.")
    if not 1 <= k <= len(errors):
        raise ValueError(f"{len(errors)} patches cannot be split into {k} chunks; expected 1 to {len(errors)}.")
