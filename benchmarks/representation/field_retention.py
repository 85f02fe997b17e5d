"""The field's protocol for LLaVA-1.5-7B and Qwen2.5-VL-7B, beside published numbers. Needs a GPU and the Hub.

    python -m benchmarks.representation.field_retention --model llava-hf/llava-1.5-7b-hf --methods itg id_pruner
    python -m benchmarks.representation.field_retention --model Qwen/Qwen2.5-VL-7B-Instruct --budgets 0.25 0.1

runs GQA, ScienceQA, TextVQA, POPE and MME-P with all tokens and with every method and budget, and prints each task,
what is left of the full model on the mean, and under it what papers report (`benchmarks/published/`). Sets of
benchmarks differ between papers and from this one: the five tasks here are those that are scored without a server or a
judge. Answers are written as they come, so that an interrupted run goes on.
"""

import argparse
import contextlib
import json
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.representation.field_tasks import TASKS, Item, with_images_of_gqa
from benchmarks.representation.grade_book import Book
from benchmarks.representation.identity import model_digest
from examples.tiny_vlm.evaluation import digest_of
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.evaluation.questions import Question, Scene, on_device

PUBLISHED = Path(__file__).parents[1] / "published"
BUDGETS = {"llava": (192, 128, 64, 32), "qwen2_5_vl": (0.25, 0.1)}
TABLES = {"llava": "llava_1_5_7b.json", "qwen2_5_vl": "qwen2_5_vl_7b.json"}


def prompt_of(processor: Any, text: str) -> str:
    """One turn with one image, by the processor's chat template where it has one."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return prompt
    return f"{processor.image_token} {text}"


@torch.inference_mode()
def answers(model: Any, processor: Any, items: Sequence[Item], batch_size: int, max_new_tokens: int = 16) -> list[str]:
    """Greedy answers to items, in batches padded on the left."""
    given = []
    for start in tqdm(range(0, len(items), batch_size), leave=False):
        part = items[start : start + batch_size]
        inputs = processor(
            images=[item.image.convert("RGB") for item in part],
            text=[prompt_of(processor, item.prompt) for item in part],
            padding=True, padding_side="left", return_tensors="pt",
        )  # fmt: skip
        tokens = model.generate(**on_device(model, dict(inputs)), do_sample=False, max_new_tokens=max_new_tokens)
        given += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in given]


def rows_of(task: str) -> Any:
    """The rows of a task where its dataset alone does not give them, else None."""
    if task != "gqa":
        return None
    from datasets import load_dataset

    name, configuration, split = TASKS[task].dataset
    images = load_dataset(name, "testdev_balanced_images", split=split)
    return with_images_of_gqa(load_dataset(name, configuration, split=split), images)


def digests_of(items: dict[str, list[Item]]) -> dict[str, str]:
    """What tells the questions of a task from others of their number: images, prompts, and what is compared with."""

    def scenes(task: str) -> Iterator[Scene]:
        for item in items[task]:
            right = repr((item.answers, item.part, item.group))
            yield Scene(task, item.image.convert("RGB"), (Question(item.prompt, right, task),))

    return {f"set of {len(asked)} questions of {task}": digest_of(scenes(task)) for task, asked in items.items()}


def measure(
    model: Any, processor: Any, items: dict[str, list[Item]], configs: dict[str, TokenPrunerConfig | None],
    book: Book, batch_size: int = 16,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Scores: row -> task -> score. Answers go into the book, and are taken from there if they are in it."""
    scores: dict[str, dict[str, float]] = {}
    for name, config in configs.items():
        with contextlib.nullcontext() if config is None else token_pruner(model, processor, config):
            for task, asked in items.items():
                ask = partial(answers, model, processor, asked, batch_size)
                said = book.recall(f"{name} | {task} | {len(asked)}", ask)
                scores.setdefault(name, {})[task] = TASKS[task].score(asked, said)
    return scores


def table(scores: dict[str, dict[str, float]], published: dict[str, Any] | None) -> str:
    """Own rows, the first being the full model, and what papers report."""
    full, tasks = next(iter(scores.values())), list(next(iter(scores.values())))
    rows = []
    for name, row in scores.items():
        left = 100 * statistics.fmean(row[task] / full[task] if full[task] else 0.0 for task in tasks)
        rows.append([name, *(f"{row[task]:.1f}" for task in tasks), f"{left:.1f}%"])
    parts = [markdown(["here", *tasks, "mean of full"], rows)]
    if published is None:
        return parts[0]
    model, per_task = published["model"], published.get("tasks")
    if per_task:
        parts.append(f"Published, {model} ({per_task['source']})")
        rows = [[name, *(f"{v:.1f}" for v in row)] for name, row in per_task["rows"].items()]
        parts.append(markdown(["method, tokens", *per_task["columns"]], rows))
    for group in published["groups"]:
        parts.append(f"Published, {model}: {group['source']}")
        rows = [[name, *("" if v is None else f"{v:.1f}" for v in row)] for name, row in group["rows"].items()]
        parts.append(markdown(["method", *group["budgets"]], rows))
    return "\n\n".join([*parts, published["note"]])


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "field_retention")
    made.add_argument("--model", default="llava-hf/llava-1.5-7b-hf", help="folder or id")
    made.add_argument("--methods", nargs="+", default=["itg", "id_pruner"])
    made.add_argument("--budgets", nargs="+", type=lambda t: float(t) if "." in t else int(t), help="counts or shares")
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    made.add_argument("--limit", type=at_least_one, help="at most this many questions of each task")
    made.add_argument("--batch-size", type=int, default=16)
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)

    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto", device_map="auto").eval()
    kind = model.config.model_type
    budgets = arguments.budgets or BUDGETS.get(kind, (0.25, 0.1))
    configs: dict[str, TokenPrunerConfig | None] = {"all tokens": None}
    for method in arguments.methods:
        configs |= {f"{method}, {budget}": TokenPrunerConfig(method=method, budget=budget) for budget in budgets}
    items = {task: list(TASKS[task].items(rows_of(task), arguments.limit)) for task in arguments.tasks}
    made_with = {"model": model_digest(arguments.model), **digests_of(items)}
    book = Book(arguments.output / "answers.json", made_with)
    scores = measure(model, processor, items, configs, book, arguments.batch_size)
    published = json.loads((PUBLISHED / TABLES[kind]).read_text()) if kind in TABLES else None
    write_json(arguments.output / "results.json", {"model": arguments.model, "scores": scores})
    write_table(arguments.output / "table.md", table(scores, published))


if __name__ == "__main__":
    main()
