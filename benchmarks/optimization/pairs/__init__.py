"""What networks learn first and then, a file for each network."""

from benchmarks.optimization.two_tasks import Pair

from .images import IMAGES
from .minilm import BIDST, LORA, MINILM, SHIRA
from .words import WORDS

PAIRS: dict[str, Pair] = {
    "words": WORDS, "images": IMAGES, "minilm": MINILM, "lora": LORA, "shira": SHIRA, "bidst": BIDST,
}  # fmt: skip
