"""A tokenizer of a hundred words, for models with random weights."""

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast


def word_tokenizer(special: list[str], **names: str) -> Any:
    """Words w0 to w99, and special tokens; `names` are attributes that processors look for (`image_token`)."""
    words = {word: i for i, word in enumerate(["<pad>", *special, "<unk>", *(f"w{i}" for i in range(100))])}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", **names)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer
