"""Linear probes: what can be read off single tokens."""

import torch
from torch import Tensor

RIDGE = 1e-2  # of the mean variance of a channel, times the number of tokens
LEAST = 200  # tokens to learn from, below which nothing is said


def probe(learn: Tensor, labels: Tensor, test: Tensor, right: Tensor) -> tuple[float, float] | None:
    """Accuracy of a linear reader of tokens: ridge regression on one-hot labels, the largest output counts.

    Args:
        learn: (M, D) tokens to learn from, float32.
        labels: (M,) long, what they are to say.
        test: (M', D) other tokens.
        right: (M',) long.

    Returns:
        Share read rightly, and the share of the most frequent label, which a reader who sees nothing would get; None
        for fewer than `LEAST` tokens in either part.
    """
    if min(len(learn), len(test)) < LEAST:
        return None
    mean, spread = learn.mean(0), learn.std(0).clamp_min(1e-6)
    x = ((learn - mean) / spread).double()
    classes = int(max(labels.max(), right.max())) + 1
    y = torch.nn.functional.one_hot(labels, classes).double()
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
    said = (((test - mean) / spread).double() @ weights + y.mean(0)).argmax(1)
    most = int(labels.bincount().argmax())
    return float((said == right).double().mean()), float((right == most).double().mean())


def by_group(tokens: Tensor, labels: Tensor, groups: Tensor, count: int) -> list[tuple[float, float] | None]:
    """A probe of its own for every group of tokens; learnt on the first half of the scenes, tested on the others.

    Args:
        tokens: (S, N, D).
        labels: (S, N) long.
        groups: (S, N) long, tokens of other groups than 0 ... count - 1 are left out.
        count: groups.
    """
    half, results = len(tokens) // 2, []
    for group in range(count):
        mine = groups == group
        first, second = mine[:half], mine[half:]
        results.append(
            probe(tokens[:half][first].float(), labels[:half][first], tokens[half:][second].float(),
                  labels[half:][second])
        )  # fmt: skip
    return results
