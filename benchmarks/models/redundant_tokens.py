"""Random visual tokens that are redundant, as those of images are."""

import torch
from torch import Tensor


def clustered(n: int, width: int) -> Tensor:
    """Tokens (1, n, width) around n // 10 centers that share a mean."""
    centers = torch.randn(n // 10, width) + 0.5 * torch.randn(width)
    return (centers[torch.randint(0, len(centers), (n,))] + 0.5 * torch.randn(n, width)).unsqueeze(0)
