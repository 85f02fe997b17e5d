"""A ViT from scratch: five classes of Fashion-MNIST, then the other five."""

import functools

from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from benchmarks.optimization.two_tasks import Pair, halves
from benchmarks.sparsity.tasks import fashion


class ImageViT(nn.Module):
    """(B, 1, 28, 28) -> (B, classes): 16 patches of 7 x 7, 48 wide, two layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
        config = ViTConfig(image_size=28, patch_size=7, num_channels=1, **sizes)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.vit(x).last_hidden_state.mean(1))


_GARMENTS = functools.cache(fashion(6000, (1, 28, 28)))
IMAGES = Pair(lambda: halves(_GARMENTS, 0), lambda: halves(_GARMENTS, 1), ImageViT)
