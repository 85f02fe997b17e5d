"""`hf-efficient demo`: what a vision-language model still knows with a part of its visual tokens, and what it saves."""

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from hf_efficient import TokenPrunerConfig, __version__
from hf_efficient.files import check_report, write_text, written_whole
from hf_efficient.representation.evaluation.drawing import draw_kept_tokens, enlarge
from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    TINY_VLM,
    Scene,
    answer_questions,
    compare_costs,
    encode_prompts,
    exact_match,
    load_evaluation_set,
    load_vlm,
    prefill,
    pruned,
)

from . import pruner_settings
from .demo_line import PAGE_FILES, Line, right
from .model_options import check_place, of_the_model
from .output import Content

PROMPTS_TIMED = 32
ROUNDS = 5
Config = TokenPrunerConfig | None


@dataclass
class Row:
    """One line of the table: the stock model (budget None), or the model with one budget.

    Args:
        budget: tokens or share kept.
        visual_tokens: per image.
        accuracy: share of answers that match word for word.
        family_accuracy: the same for each family of questions.
        prefill_seconds: median for a batch of prompts, vision tower and choice of tokens included.
        prefill_ratio: to the stock model, measured in turns.
        kv_cache_bytes: per prompt.
    """

    budget: int | float | None
    visual_tokens: int
    accuracy: float
    family_accuracy: dict[str, float]
    prefill_seconds: float
    prefill_ratio: float
    kv_cache_bytes: int


def run(arguments: argparse.Namespace) -> Content:
    """Ask, measure, print the table, write `results.json` and the drawn images.

    Raises:
        ValueError: a setting is invalid, or the model's family is not supported.
        OSError: the model or the images cannot be loaded, or results not be written.
    """
    check_place(arguments)
    settings = pruner_settings(arguments)
    pruners = [TokenPrunerConfig(**{**settings, "budget": b}) for b in arguments.budget]  # type: ignore[arg-type]
    configs: list[Config] = [None, *pruners]
    check_report(arguments.output, "results.json", [r"kept_tokens_\d+\.png", *PAGE_FILES], "token_pruner")
    if arguments.all:
        from .demo_all import check_installed

        check_installed()
    scenes = load_evaluation_set(arguments.data or EVALUATION_SET, limit=arguments.scenes)
    model, processor = load_vlm(arguments.model or TINY_VLM, **of_the_model(arguments))
    model.to(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)

    answers = answer_all(model, processor, scenes, configs, arguments.batch_size)
    rows = measure(model, processor, scenes, configs, answers)
    print(table(rows, pruners[0].method, sum(len(scene.questions) for scene in scenes), len(scenes)))
    common = {name: value for name, value in pruners[0].to_dict().items() if name != "budget"}
    results = results_of(rows, common, len(scenes))
    write_text(arguments.output / "results.json", json.dumps(results, indent=2) + "\n")
    drawn = scenes[: arguments.draw]
    for number, scene in enumerate(tqdm(drawn, desc="drawing", unit="image", leave=False)):
        page = sheet(model, processor, scene, configs, [given[number] for given in answers])
        with written_whole(arguments.output / f"kept_tokens_{number:02d}.png") as draft:
            page.save(draft)
    print(f"\n{len(drawn)} images with the kept tokens drawn on them, and results.json, are in {arguments.output}")
    if arguments.all:
        from .demo_all import run_all

        asked = sum(len(scene.questions) for scene in scenes)
        tokens = [line_of(row, rows[0], pruners[0].method, asked) for row in rows]
        pages = [f"kept_tokens_{number:02d}.png" for number in range(min(3, len(drawn)))]
        lines = run_all(arguments.output, tokens, pages)
        results["budgets"] = [asdict(line) for line in lines]
    return results | {"output": arguments.output}


def line_of(row: Row, stock: Row, method: str, questions: int) -> Line:
    """A row of the one table."""
    name = "all visual tokens" if row is stock else f"{method}, {row.visual_tokens} of {stock.visual_tokens} tokens"
    cost = f"prefill {row.prefill_ratio:.0%}, cache {row.kv_cache_bytes / stock.kv_cache_bytes:.0%}"
    return Line("representation", name, cost, right(row.accuracy, questions))


def answer_all(
    model: Any, processor: Any, scenes: Sequence[Scene], configs: Sequence[Config], batch_size: int
) -> list[list[list[str]]]:
    """Answers by config, scene and question."""
    images = [scene.image for scene in scenes for _ in scene.questions]
    questions = [question.question for scene in scenes for question in scene.questions]
    by_config = []
    with tqdm(total=len(configs) * len(questions), desc="asking", unit="question", leave=False) as bar:
        for config in configs:
            with pruned(model, processor, config):
                flat = iter(answer_questions(model, processor, images, questions, batch_size, progress=bar.update))
            by_config.append([[next(flat) for _ in scene.questions] for scene in scenes])
    return by_config


def measure(
    model: Any,
    processor: Any,
    scenes: Sequence[Scene],
    configs: Sequence[Config],
    answers: Sequence[Sequence[Sequence[str]]],
) -> list[Row]:
    """Accuracy of the given answers, and cost of the prompts, for every config."""
    asked = [(scene.image, question.question) for scene in scenes for question in scene.questions][:PROMPTS_TIMED]
    images, questions = zip(*asked, strict=True)
    costs = compare_costs(model, processor, images, questions, configs, ROUNDS)
    rows = []
    for config, given, cost in zip(configs, answers, costs, strict=True):
        accuracy, by_family = accuracies(scenes, given)
        rows.append(
            Row(
                budget=None if config is None else config.budget,
                visual_tokens=cost.visual_tokens,
                accuracy=accuracy,
                family_accuracy=by_family,
                prefill_seconds=cost.prefill_seconds,
                prefill_ratio=cost.prefill_seconds / costs[0].prefill_seconds,
                kv_cache_bytes=cost.kv_cache_bytes // len(asked),
            )
        )
    return rows


def accuracies(scenes: Sequence[Scene], given: Sequence[Sequence[str]]) -> tuple[float, dict[str, float]]:
    """Share of exact answers, over all and in each family."""
    hits = defaultdict(list)
    for scene, replies in zip(scenes, given, strict=True):
        matches = exact_match(replies, [question.answer for question in scene.questions])
        for question, match in zip(scene.questions, matches, strict=True):
            hits[question.family].append(match)
    every = [match for matches in hits.values() for match in matches]
    return sum(every) / len(every), {family: sum(matches) / len(matches) for family, matches in hits.items()}


def table(rows: Sequence[Row], method: str, questions: int, images: int) -> str:
    """The rows as text."""
    lines = [
        f"{method}: {questions} questions about {images} images",
        "",
        f"{'budget':>8} {'tokens':>8} {'accuracy':>10} {'prefill':>9} {'of stock':>9} {'KV cache':>10} {'of stock':>9}",
    ]
    for row in rows:
        lines.append(
            f"{'stock' if row.budget is None else row.budget:>8} {row.visual_tokens:>8} {row.accuracy:>10.1%} "
            f"{row.prefill_seconds * 1e3:>6.0f} ms {row.prefill_ratio:>9.0%} "
            f"{row.kv_cache_bytes / 1024:>6.0f} KiB {row.kv_cache_bytes / rows[0].kv_cache_bytes:>9.0%}"
        )
    lines += ["", f"prefill: a batch of {PROMPTS_TIMED} prompts at most, vision tower included; KV cache: one prompt"]
    return "\n".join(lines)


def results_of(rows: Sequence[Row], settings: dict[str, object], images: int) -> Content:
    """The table, and the conditions it was measured under."""
    return {
        "hf_efficient": __version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "token_pruner": settings,
        "images": images,
        "rows": [asdict(row) for row in rows],
    }


def sheet(
    model: Any, processor: Any, scene: Scene, configs: Sequence[Config], answers: Sequence[Sequence[str]]
) -> Image.Image:
    """One image side by side with all budgets, its first question and the answers under it.

    Args:
        model: the model.
        processor: its processor.
        scene: image and questions.
        configs: what to show; None is the whole image.
        answers: by config and question.
    """
    asked = scene.questions[0]
    panels = []
    for config in configs:
        if config is None:
            panels.append((enlarge(scene.image), "all tokens"))
            continue
        with pruned(model, processor, config):
            prefill(model, encode_prompts(processor, [scene.image], [asked.question]))
            kept = model.base_model.token_pruner.last[0]
        image = (
            enlarge(scene.image)
            if kept.grid is None  # not a raster: nothing to draw
            else draw_kept_tokens(scene.image, kept.indices.tolist(), kept.grid)
        )
        panels.append((image, f"{len(kept.indices)} of {kept.num_tokens} tokens"))
    return _paste(panels, f"{asked.question}  ({asked.answer})", [replies[0] for replies in answers], asked.answer)


def _paste(panels: Sequence[tuple[Image.Image, str]], title: str, answers: Sequence[str], right: str) -> Image.Image:
    font = ImageFont.load_default(size=22)
    gap, text_height = 16, 34
    width, height = panels[0][0].size
    size = (len(panels) * (width + gap) + gap, height + 3 * text_height + 2 * gap)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    pen.text((gap, gap // 2), title, "black", font)
    for i, ((image, caption), answer) in enumerate(zip(panels, answers, strict=True)):
        x = gap + i * (width + gap)
        page.paste(image, (x, text_height + gap // 2))
        y = text_height + height + gap
        pen.text((x, y), caption, (90, 90, 90), font)
        color = (20, 120, 50) if exact_match([answer], [right])[0] else (180, 30, 30)
        pen.text((x, y + text_height - 4), _shortened(answer or "(nothing)", width, font), color, font)
    return page


def _shortened(text: str, width: int, font: Any) -> str:
    """The text, cut where it would be wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
