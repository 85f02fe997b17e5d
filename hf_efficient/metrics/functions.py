"""The metrics themselves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_efficient.representation.evaluation.questions import exact_match


def check_alike(predictions: Sequence[Any], references: Sequence[Any], what: str) -> None:
    """Refuse what cannot be compared one by one."""
    if not len(predictions) or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} {what} for {len(references)}; expected as many, and one at least.")


def token_retention(predictions: Sequence[str], references: Sequence[str], stock: Sequence[str]) -> dict[str, float]:
    """What is left of a model's right answers with fewer visual tokens.

    Args:
        predictions: answers with fewer tokens.
        references: right answers.
        stock: answers with all tokens.

    Returns:
        Accuracy of both, their ratio, and the share of answers that stayed the same.
    """
    check_alike(predictions, references, "answers")
    now, before = (float(np.mean(exact_match(given, references))) for given in (predictions, stock))
    same = float(np.mean(exact_match(predictions, stock)))
    return {"accuracy": now, "stock_accuracy": before, "retention": now / before if before else math.nan, "same": same}


def exact_match_by_family(
    predictions: Sequence[str], references: Sequence[str], families: Sequence[str]
) -> dict[str, float]:
    """Share of answers that match word for word: of all, the mean of families, and of each.

    Args:
        predictions: answers.
        references: right answers.
        families: of questions, one for each.

    Raises:
        ValueError: a family has the name of one of the means, or there is not one for each.
    """
    if taken := {"exact_match", "mean_of_families"} & set(families):
        raise ValueError(f"families: {sorted(taken)[0]!r} is the name of a mean that is returned; rename the family.")
    check_alike(predictions, references, "answers")
    check_alike(predictions, families, "answers")
    hits: dict[str, list[bool]] = defaultdict(list)
    for family, hit in zip(families, exact_match(predictions, references), strict=True):
        hits[family].append(hit)
    each = {family: float(np.mean(found)) for family, found in sorted(hits.items())}
    return {"exact_match": float(np.mean([hit for found in hits.values() for hit in found])),
            "mean_of_families": float(np.mean(list(each.values()))), **each}  # fmt: skip


def sparsity(predictions: Sequence[int], references: Sequence[int], dense: int = 0) -> dict[str, float]:
    """Share of zeros: of the layers that are sparse, and of the whole model.

    Args:
        predictions: weights of each layer that are not zero.
        references: weights of each layer.
        dense: all other parameters of the model.

    Raises:
        ValueError: a layer has no weights, or more that are not zero than it has.
    """
    check_alike(predictions, references, "layers")
    for left, size in zip(predictions, references, strict=True):
        if not 0 <= left <= size or not size:
            raise ValueError(f"A layer with {left} weights that are not zero of {size}; expected 0 to as many.")
    nonzero, weights = int(np.sum(predictions)), int(np.sum(references))
    return {"sparsity": 1 - nonzero / weights, "whole_model": (weights - nonzero) / (weights + dense)}


def video_quality(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """PSNR of the mean squared error over all frames, on RGB and on BT.601 luma, and the mean SSIM on luma.

    Args:
        predictions: frames, (H, W, 3) of 0 to 255.
        references: frames of the same sizes.
    """
    from hf_efficient.video.measure.evaluation import ssim
    from hf_efficient.video.networks.backbones.luma import LUMA
    from hf_efficient.video.patches import psnr

    check_alike(predictions, references, "frames")
    rgb, luma, similar = [], [], []
    for given, right in zip(predictions, references, strict=True):
        x, y = np.asarray(given, dtype=np.float64), np.asarray(right, dtype=np.float64)
        if x.shape != y.shape or x.ndim != 3 or x.shape[2] != 3:
            raise ValueError(f"A frame of {x.shape} for one of {y.shape}; expected the same size, (H, W, 3).")
        error = (x - y) / 255
        rgb.append(float(np.mean(error**2)))
        luma.append(float(np.mean((error @ LUMA) ** 2)))
        similar.append(ssim(x, y))
    of_rgb, of_luma, similarity = (float(np.mean(values)) for values in (rgb, luma, similar))
    return {"psnr_rgb": psnr(of_rgb), "psnr_luma": psnr(of_luma), "ssim_luma": similarity}


def forgetting(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """How far scores of earlier tasks fell.

    Args:
        predictions: scores after training on another task, one for each task.
        references: the scores before.
    """
    check_alike(predictions, references, "scores")
    lost = np.subtract(references, predictions)
    return {"forgetting": float(lost.mean()), "largest": float(lost.max())}


def loss_rise(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Sharpness of losses that were measured: how far they rise where weights are moved.

    `hf_efficient.sharpness` moves them and measures.

    Args:
        predictions: losses of batches at the moved weights.
        references: losses of the same batches at the weights.
    """
    check_alike(predictions, references, "losses")
    rise = np.subtract(predictions, references)
    return {"sharpness": float(rise.mean()), "largest": float(rise.max())}
