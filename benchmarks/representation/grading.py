"""Grade models with rows of settings at several budgets; an interrupted run goes on where it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.intervals import Grades
from benchmarks.representation.grade_book import GradeBook
from benchmarks.representation.identity import labels_of, made_with, models_of
from benchmarks.representation.object_scenes import tiny_scenes
from benchmarks.representation.packed_turns import grade_scenes
from hf_efficient import TokenPrunerConfig, remember_images, token_pruner
from hf_efficient.representation.evaluation.questions import (
    Scene,
    answer_questions,
    encode_prompts,
    exact_match,
    load_evaluation_set,
    load_vlm,
)
from hf_efficient.representation.vlm.decoder.calls import Call, under_way
from hf_efficient.representation.vlm.prompt import Prompt

#: What a row does to images, as settings of `TokenPrunerConfig`; None: the image is made smaller instead.
Settings = dict[str, Any] | None


def resized(tokens: int) -> Any:
    """The image shrunk until the vision tower makes at most `tokens` visual tokens of it, nearly square."""

    def vision_inputs(model: Any, pixel_values: Tensor, scenes: Sequence[Scene]) -> tuple[Any, int]:
        patch = model.config.vision_config.patch_size
        rows = int(tokens**0.5)
        columns = tokens // rows if tokens // rows <= rows * 1.5 else rows
        small = torch.nn.functional.interpolate(
            pixel_values, size=(rows * patch, columns * patch), mode="bicubic", antialias=True, align_corners=False
        )
        encoded = model.base_model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True)
        return encoded, rows * columns

    return vision_inputs


def asked(processor: Any) -> Any:
    """Images pruned with a view to the one question of their scene; the answer behind it is not looked at."""

    def vision_inputs(model: Any, pixel_values: Tensor, scenes: Sequence[Scene]) -> tuple[Any, int]:
        base, questions = model.base_model, [scene.questions[0].question for scene in scenes]
        inputs = encode_prompts(processor, [scene.image for scene in scenes], questions)
        call = Call()
        call.prompt = Prompt.of(base, base.token_pruner.family, inputs["input_ids"], inputs["attention_mask"])
        with under_way(base, call):
            encoded = base.get_image_features(pixel_values, return_dict=True)
        return encoded, len(encoded.kept[0].indices)

    return vision_inputs


def grade(model: Any, processor: Any, scenes: Sequence[Scene], settings: Settings, budget: float) -> Grades:
    """Grades of all questions with one variant (None: the resized image) at one budget."""
    config = TokenPrunerConfig(**{**(settings or {}), "budget": budget})
    if config.llm_layers:
        first, second = (1.0, budget) if config.method == "id_pruner" else (min(1.0, 2 * budget), config.llm_budget)
        return grade_answers(model, processor, scenes, replace(config, budget=first, llm_budget=second))
    if settings is None:
        return grade_scenes(
            model, processor, scenes, vision_inputs=resized(config.tokens_to_keep(visual_tokens(model)))
        )
    with token_pruner(model, processor, config):
        if not config.question_weight:
            return grade_scenes(model, processor, scenes)
        single = [Scene(scene.name, scene.image, (question,)) for scene in scenes for question in scene.questions]
        graded = iter(grade_scenes(model, processor, single, vision_inputs=asked(processor)))
        return [[next(graded)[0] for _ in scene.questions] for scene in scenes]


def grade_answers(model: Any, processor: Any, scenes: Sequence[Scene], config: TokenPrunerConfig) -> Grades:
    """Grades of questions asked one by one: what the last word attends to differs from question to question."""
    asked = [(scene.image, question.question, question.answer) for scene in scenes for question in scene.questions]
    images, questions, answers = zip(*asked, strict=True)
    with token_pruner(model, processor, config):
        given = answer_questions(model, processor, images, questions, batch_size=128)
    rights = iter(exact_match(given, answers))
    return [[next(rights) for _ in scene.questions] for scene in scenes]


def visual_tokens(model: Any) -> int:
    """Visual tokens of one image, unpruned."""
    return model.config.image_seq_length


def shown_noise(scenes: Sequence[Scene]) -> list[Scene]:
    """The same questions about images of noise: what can be guessed."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (*scene.image.size[::-1], 3), np.uint8)) for scene in scenes]
    return [Scene(scene.name, image, scene.questions) for scene, image in zip(scenes, noise, strict=True)]


def scenes_of(named: str, limit: int | None = None) -> list[Scene]:
    """Scenes of a folder, or composed: "standard:2027" are those of a layout and a seed, 512 without a limit.

    Raises:
        SystemExit: there is neither such a folder nor such a layout, or the folder holds no scenes.
    """
    layout, colon, seed = named.rpartition(":")
    try:
        if colon and seed.isdigit() and not Path(named).exists():
            return [one.scene for one in tiny_scenes(int(seed), layout, limit or 512)]
        return load_evaluation_set(named, limit)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error


@dataclass
class ModelGrades:
    """Grades of every model: with all tokens, shown noise, and by (row, budget); tokens of an image, unpruned."""

    labels: list[str]
    whole: list[Grades]
    blind: list[Grades]
    pruned: dict[tuple[str, float], list[Grades]]
    tokens: int = 0


def grade_models(
    models: Sequence[str],
    scenes: Sequence[Scene],
    rows: Mapping[str, Settings],
    budgets: Sequence[float],
    book: Path,
    again: Sequence[str] = (),
) -> ModelGrades:
    """Grade every model with every row at every budget.

    Args:
        models: folders or ids.
        scenes: what is asked.
        rows: name -> settings.
        budgets: shares of the visual tokens.
        book: file of grades; what is in it is not measured again,
        again: but for these methods.

    Raises:
        SystemExit: the grades in the file are of other scenes, or other models of these names.
    """
    grades_of = GradeBook(book, scenes, made_with(models_of(models), rows))
    made = ModelGrades(labels_of(models), [], [], {})
    grades_of.forget(again)
    for label, folder in zip(made.labels, models, strict=True):
        model, processor = load_vlm(folder)
        with remember_images(model, size=24):  # the tower runs once, not once per row and budget
            made.whole.append(grades_of(f"{label} all", lambda: grade_scenes(model, processor, scenes)))
            made.blind.append(grades_of(f"{label} blind", lambda: grade_scenes(model, processor, shown_noise(scenes))))
            for budget in tqdm(budgets, desc=label):
                for name, settings in tqdm(rows.items(), desc=f"{budget:.1%}", leave=False):
                    measure = lambda: grade(model, processor, scenes, settings, budget)  # noqa: E731
                    made.pruned.setdefault((name, budget), []).append(grades_of(f"{label} {name} {budget}", measure))
        made.tokens = visual_tokens(model)
    return made
