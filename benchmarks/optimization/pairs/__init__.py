"""What networks learn first and then, a file for each network."""

from benchmarks.optimization.two_tasks import Pair

from .dinov2 import DINOV2
from .images import IMAGES
from .llama import LLAMA
from .minilm import BIDST, LORA, MINILM, SHIRA
from .tiny_vlm import TINY_VLM
from .words import WORDS

PAIRS: dict[str, Pair] = {
    "words": WORDS, "images": IMAGES, "minilm": MINILM, "lora": LORA, "shira": SHIRA, "bidst": BIDST,
    "dinov2": DINOV2, "llama": LLAMA, "tiny_vlm": TINY_VLM,
}  # fmt: skip
