"""What was kept of one image, tile, frame or video."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hf_efficient.representation.generator import TokenGenerator
from hf_efficient.representation.maths.mixture import Mixture


@dataclass
class KeptUnit:
    """What was kept of one image, tile, frame or video.

    Args:
        modality: "image" or "video".
        num_tokens: N, the tokens it had.
        indices: (K,) long, rising: the tokens it has now.
        importance_retained: scalar in [0, 1], share of the importance that the kept tokens hold.
        coverage: scalar in [0, 1], how well the kept tokens stand for all.
        grid: rows and columns of the N tokens, None where they form no raster.
        assignment: (N,) long, which of the K tokens stands for each of the N; None where nothing is assigned.
        mass: (K,) float32, how many tokens each of the K stands for; None where nothing is assigned.
        mixture: how generated tokens were made, as a batch of one; None where tokens were selected, and `indices` are
            then those tokens, else the anchors of the generated ones.
    """

    modality: str
    num_tokens: int
    indices: Tensor
    importance_retained: Tensor
    coverage: Tensor
    grid: tuple[int, int] | None
    assignment: Tensor | None = None
    mass: Tensor | None = None
    mixture: Mixture | None = None

    def tokens(self, features: Tensor, generator: TokenGenerator | None = None) -> Tensor:
        """The K tokens (K, D) of one level of the unit's features (N, D); `generator` refines generated ones."""
        if len(self.indices) == len(features):
            return features
        if self.mixture is None:
            return features[self.indices]
        unit = features.unsqueeze(0)
        made = self.mixture.of(unit)
        return (made if generator is None else generator(made, unit)).squeeze(0)
