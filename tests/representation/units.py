"""Small units of tokens for tests of methods, their cosines, and a watch on memory."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils._python_dispatch import TorchDispatchMode

SEEDS = range(5)


def unit(seed: int, n: int = 40, width: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens (n, width) in loose clusters, and their importance (n,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 4, width, generator=generator)
    x = centres[torch.randint(0, n // 4, (n,), generator=generator)] + 0.5 * torch.randn(n, width, generator=generator)
    return x, torch.rand(n, generator=generator) ** 2


def cosines(x: Tensor) -> Tensor:
    return cosine_similarity(x[:, None].double(), x[None].double(), dim=-1)


class LargestTensor(TorchDispatchMode):
    """Watches how many numbers the largest tensor made has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        made = [t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)]
        self.numbers = max([self.numbers, *made])
        return out
