"""How large the models and tensors of the GPU check are: as in use, or tiny, to try the check itself on a CPU."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sizes:
    """Of a run.

    Attributes:
        rounds: of what is timed in turns.
        exact: layers and width of the language model whose outputs are compared with those on the CPU.
        attentions: in which 16 bits are compared.
        layers: of the language model that is timed, at most; `fitting` says how many there is memory for.
        width: of the language model that is timed.
        tower: layers and width of its vision tower.
        side: of its picture.
        kept: visual tokens that stay of a picture.
        selections: (N, K) of selection alone.
        vit: hidden size, layers, side of a picture, batch.
        linear: (outputs, inputs) of 2:4 layers.
        activations: of a forward through them.
    """

    rounds: int = 7
    exact: tuple[int, int] = (4, 512)
    attentions: tuple[str, ...] = ("sdpa", "flash", "flex")
    layers: int = 32
    width: int = 4096
    tower: tuple[int, int] = (24, 1024)
    side: int = 336
    kept: int = 64
    selections: tuple[tuple[int, int], ...] = ((576, 64), (2880, 160), (10_000, 512))
    vit: tuple[int, int, int, int] = (768, 12, 224, 64)
    linear: tuple[tuple[int, int], ...] = ((4096, 4096), (11008, 4096), (4096, 11008))
    activations: tuple[int, ...] = field(default=(16, 512, 4096))

    def fitting(self, device: str) -> int:
        """Layers of the language model, initialized in float32, that take less than half of the free memory."""
        if device == "cpu":
            return self.layers
        layer = 4 * (4 + 3 * 2.6875) * self.width**2
        return max(1, min(self.layers, int(torch.cuda.mem_get_info()[0] / 2 / layer)))


TINY = Sizes(
    rounds=3, exact=(2, 128), attentions=("sdpa", "flash"), layers=1, width=128, tower=(2, 64), side=112, kept=8,
    selections=((64, 8), (144, 16)), vit=(32, 2, 32, 4), linear=((64, 64),), activations=(4,),
)  # fmt: skip
