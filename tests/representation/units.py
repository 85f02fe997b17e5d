"""Small units of tokens for tests of methods, and their cosines."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

SEEDS = range(5)


def unit(seed: int, n: int = 40, width: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens (n, width) in loose clusters, and their importance (n,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 4, width, generator=generator)
    x = centres[torch.randint(0, n // 4, (n,), generator=generator)] + 0.5 * torch.randn(n, width, generator=generator)
    return x, torch.rand(n, generator=generator) ** 2


def cosines(x: Tensor) -> Tensor:
    return cosine_similarity(x[:, None].double(), x[None].double(), dim=-1)
