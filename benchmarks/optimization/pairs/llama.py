"""A small Llama from scratch (400,000 weights): the next word of newsgroup posts, then of Reuters' news.

Both are lower-case words, the 1000 most frequent of both, all others one; what is scored is the mean loss.
"""

import functools
from collections import Counter

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from benchmarks.optimization.sam_tasks import loss_of
from benchmarks.optimization.two_tasks import Pair
from benchmarks.sparsity.tasks import Data
from examples import real_data

WORDS, LENGTH, OTHER = 1000, 32, 0  # known words, words of a row, and the number of all others
ROWS, TEST_ROWS = 6000, 500
TEXTS = (real_data.newsgroups, real_data.reuters_r52)


class NextWord(nn.Module):
    """(B, L) words -> (B, WORDS, L): what comes after each. The head is of the words of both texts."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, initializer_range=0.1, **sizes)
        self.llama = LlamaModel(config)
        self.head = nn.Linear(96, WORDS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.llama(input_ids=x, use_cache=False).last_hidden_state).transpose(1, 2)


@functools.cache
def numbers() -> dict[str, int]:
    """The known words of both texts, which count equally."""
    counts: Counter[str] = Counter()
    for load in TEXTS:
        found = Counter(word for text in load(True).texts for word in text.split())
        counts.update({word: round(1e7 * n / found.total()) for word, n in found.items()})
    return {word: i for i, (word, _) in enumerate(counts.most_common(WORDS - 1), OTHER + 1)}


@functools.cache
def rows(which: int) -> Data:
    """Words (N, LENGTH) and the words after them, of texts one behind the other; test texts the same."""
    known, parts = numbers(), []
    for train, count in ((True, ROWS), (False, TEST_ROWS)):
        ids = [known.get(word, OTHER) for text in TEXTS[which](train).texts for word in text.split()]
        cut = torch.tensor(ids[: 1 + (len(ids) - 1) // LENGTH * LENGTH])
        picked = torch.randperm((len(cut) - 1) // LENGTH, generator=torch.Generator().manual_seed(0))[:count]
        parts += [part.view(-1, LENGTH)[picked] for part in (cut[:-1], cut[1:])]
    return parts[0], parts[1], parts[2], parts[3]


@torch.no_grad()
def minus_loss(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of 100 words: the mean loss of a word in nats, times 100, negative."""
    net.eval()
    losses = [loss_of(net, *part) for part in zip(x.split(50), y.split(50), strict=True)]
    return -100 * float(torch.stack(losses).mean())


LLAMA = Pair(
    lambda: rows(0), lambda: rows(1), NextWord, rate=4e-3, steps=200, batch=16, tuning_seeds=0, bits=(4, 3, 2),
    pruned=(0.7, 0.9), own_heads=False, score=minus_loss,
)  # fmt: skip
