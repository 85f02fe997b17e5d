"""Public benchmarks as the field asks and scores them: prompts, answers and scores, without a model.

The datasets are those of lmms-lab on the Hub. Prompts and scores follow LLaVA-1.5's protocol: short answers, option
letters for ScienceQA, F1 for POPE, the sum of both accuracies for MME's perception part.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
MME_PERCEPTION = frozenset(
    "existence count position color posters celebrity scene landmark artwork OCR".split()
)  # what MME-P sums over; the other categories are cognition
Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """An image, the text that goes with it, what the answer is held to, and the part of the task it belongs to."""

    image: Any
    prompt: str
    answers: tuple[str, ...]
    part: str = ""
    group: str = ""  # questions about one image, for scores that want all of them right


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        dataset: id on the Hub, configuration (or None) and split.
        item: makes an `Item` of a row; None skips the row.
        score: from items and answers given to the number that papers print.
    """

    dataset: tuple[str, str | None, str]
    item: Callable[[Row], Item | None]
    score: Callable[[list[Item], list[str]], float]

    def items(self, rows: Iterable[Row] | None = None, limit: int | None = None) -> Iterator[Item]:
        """The items, of the Hub's dataset or of `rows`; at most `limit`."""
        if rows is None:
            from datasets import load_dataset

            name, configuration, split = self.dataset
            rows = load_dataset(name, configuration, split=split)
        count = 0
        for row in rows:
            item = self.item(row)
            if item is not None and (limit is None or count < limit):
                count += 1
                yield item


def plain(text: str) -> str:
    """Lower case, one space between words, no full stop or quotes at the ends, no article in front."""
    text = re.sub(r"\s+", " ", text.lower().strip()).strip(" .'\"`")
    return re.sub(r"^(a|an|the) ", "", text)


def matches(items: list[Item], given: list[str]) -> float:
    """Per cent of answers that are the right one, word for word."""
    return 100 * statistics.fmean(
        plain(answer) == plain(item.answers[0]) for item, answer in zip(items, given, strict=True)
    )


def letters(items: list[Item], given: list[str]) -> float:
    """Per cent of answers whose first option letter is the right one."""
    found = [re.search(r"\b([A-J])\b", answer) for answer in given]
    return 100 * statistics.fmean(
        f is not None and f[1] == item.answers[0] for f, item in zip(found, items, strict=True)
    )


def vqa(items: list[Item], given: list[str]) -> float:
    """VQA accuracy in per cent: mean over the annotators left out of min(1, others who agree / 3)."""
    scores = []
    for item, answer in zip(items, given, strict=True):
        said = [plain(one) for one in item.answers]
        agree = [sum(other == plain(answer) for j, other in enumerate(said) if j != i) for i in range(len(said))]
        scores.append(statistics.fmean(min(1.0, count / 3) for count in agree))
    return 100 * statistics.fmean(scores)


def f1(items: list[Item], given: list[str]) -> float:
    """F1 of "yes" in per cent, mean over the parts (random, popular, adversarial)."""
    scores = []
    for part in sorted({item.part for item in items}):
        pairs = [(item.answers[0] == "yes", plain(a).startswith("yes")) for item, a in zip(items, given, strict=True)
                 if item.part == part]  # fmt: skip
        right = sum(truth and said for truth, said in pairs)
        wrong = sum(truth != said for truth, said in pairs)
        scores.append(2 * right / max(1, 2 * right + wrong))
    return 100 * statistics.fmean(scores)


def perception(items: list[Item], given: list[str]) -> float:
    """MME-P: over the categories, the sum of accuracy and of the share of images with both questions right, in %."""
    total = 0.0
    for part in sorted({item.part for item in items}):
        images: dict[str, list[bool]] = {}
        for item, answer in zip(items, given, strict=True):
            if item.part == part:
                images.setdefault(item.group, []).append(plain(answer).startswith(item.answers[0]))
        rights = [right for both in images.values() for right in both]
        total += 100 * (statistics.fmean(rights) + statistics.fmean(all(both) for both in images.values()))
    return total


def scienceqa(row: Row) -> Item | None:
    if row.get("image") is None:
        return None
    options = "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(row["choices"]))
    context = f"Context: {row['hint']}\n" if row.get("hint") else ""
    return Item(row["image"], f"{context}{row['question']}\n{options}{LETTER}", (chr(65 + row["answer"]),))


def mme(row: Row) -> Item | None:
    if row["category"] not in MME_PERCEPTION:
        return None
    question = row["question"].replace(" Please answer yes or no.", "")
    return Item(row["image"], question + SHORT, (plain(row["answer"]),), row["category"], row["question_id"])


TASKS = {
    "gqa": Task(
        ("lmms-lab/GQA", "testdev_balanced_instructions", "testdev"),
        lambda row: Item(row["image"], row["question"] + SHORT, (row["answer"],)),
        matches,
    ),
    "scienceqa": Task(("lmms-lab/ScienceQA", "ScienceQA-IMG", "test"), scienceqa, letters),
    "textvqa": Task(
        ("lmms-lab/textvqa", None, "validation"),
        lambda row: Item(row["image"], row["question"].capitalize() + SHORT, tuple(row["answers"])),
        vqa,
    ),
    "pope": Task(
        ("lmms-lab/POPE", None, "test"),
        lambda row: Item(row["image"], row["question"] + SHORT, (plain(row["answer"]),), row["category"]),
        f1,
    ),
    "mme": Task(("lmms-lab/MME", None, "test"), mme, perception),
}


def with_images_of_gqa(rows: Iterable[Row], images: Iterable[Row]) -> list[Row]:
    """GQA keeps its images in a configuration of their own (`testdev_balanced_images`): joined by id."""
    by_id = {image["id"]: image["image"] for image in images}
    return [{**row, "image": by_id[row["imageId"]]} for row in rows]
