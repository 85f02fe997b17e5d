"""How much of a VLM's accuracy is left when most visual tokens are gone.

`python -m benchmarks.representation.token_retention`

Methods x budgets x question families on the tiny VLM and its fixed evaluation set, or on scenes that nobody tuned to:
`--seed 123 --layout crowded` composes them anew (needs Fashion-MNIST). Everything is measured in one run: exact-match
accuracy with 95 % confidence intervals (bootstrap over scenes), paired differences to ID-Pruner and to ITG, and as
anchors the model with all tokens and the model shown noise instead of the image. Several `--model` folders (training
seeds) are averaged and listed, and intervals then hold for scenes and seeds. Saved configs (`--configs`) are more rows.
Writes tables, a JSON with all numbers, curves, and images of what each method keeps. An interrupted run goes on where
it was: grades are written as they are made, and read again.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.intervals import Grades
from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.representation.grade_book import GradeBook
from benchmarks.representation.packed_turns import grade_scenes
from benchmarks.representation.retention_statistics import compare, curves, table
from benchmarks.representation.token_generation import COVERAGE
from hf_efficient import TokenPrunerConfig, remember_images, token_pruner
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.evaluation.drawing import draw_kept_tokens
from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    TINY_VLM,
    Question,
    Scene,
    answer_questions,
    encode_prompts,
    exact_match,
    load_evaluation_set,
    load_vlm,
)
from hf_efficient.representation.vlm.decoder.calls import Call, under_way
from hf_efficient.representation.vlm.prompt import Prompt

RESIZED = "resized_image"
OTHERS = [name for name in REPRESENTATION.names if name not in ("id_pruner", "itg")]
#: Settings by the name of the row. Methods come with their defaults; what belongs to one method follows it.
VARIANTS: dict[str, dict[str, Any]] = {
    "id_pruner": {},
    "id_pruner, proportional attention": {"proportional_attention": True},
    "id_pruner, proportional attention, compact": {"proportional_attention": True, "positions": "compact"},
    "itg": {"method": "itg"},
    "itg, compact": {"method": "itg", "positions": "compact"},
    "itg, plain attention": {"method": "itg", "proportional_attention": False},
    "itg, by attention": {"method": "itg", "importance": "cls"},
    "itg, by attention, on coverage": COVERAGE,
    "id_pruner, distinct": {"importance": "distinct"},
    **{name: {"method": name} for name in OTHERS},
    **{
        f"{name}, proportional attention": {"method": name, "proportional_attention": True} for name in OTHERS
    },  # as ITG has it by default
    "cdpruner, question": {"method": "cdpruner", "question_weight": 1.0},
    "id_pruner, question": {"question_weight": 0.3},
    "itg, question": {"method": "itg", "question_weight": 0.3},
    "fastv": {"llm_layers": [2]},  # all tokens up to layer 2, the budget's from there on
    "itg, then fastv": {"method": "itg", "llm_layers": [2], "llm_budget": 0.5},  # twice the budget up to layer 2
}
ONE_STAGE = [name for name, row in VARIANTS.items() if not {"llm_layers", "question_weight"} & row.keys()]
#: Like beside like: nobody counts sizes, or everybody does.
PANELS = {
    "every kept token counts once": {
        "id_pruner": "id_pruner", "itg, plain attention": "itg", **{name: name for name in OTHERS}
    },
    "proportional attention for all": {
        "id_pruner, proportional attention": "id_pruner", "itg": "itg",
        **{f"{name}, proportional attention": name for name in OTHERS}
    },
}  # fmt: skip
BUDGETS = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.015)
DRAWN = (
    "id_pruner",
    "itg",
    "top_importance",
    "divprune",
    "scope",
    "visionzip",
    "prumerge",
    "tome",
    "holov",
    "uniform",
)


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
        call.prompt = Prompt.of(base, inputs["input_ids"], inputs["attention_mask"])
        with under_way(base, call):
            encoded = base.get_image_features(pixel_values, return_dict=True)
        return encoded, len(encoded.kept[0].indices)

    return vision_inputs


def grade(
    model: Any, processor: Any, scenes: Sequence[Scene], settings: dict[str, Any] | None, budget: float
) -> Grades:
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


def composed(seed: int, layout: str, count: int) -> Iterator[Scene]:
    """Held-out scenes of Fashion-MNIST's test images, as `examples/make_tiny_vlm_evaluation.py` writes them."""
    from examples.tiny_vlm.questions import FAMILIES
    from examples.tiny_vlm.scenes import LAYOUTS, compose_scene, load_fashion_mnist

    images = load_fashion_mnist("t10k")
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = compose_scene(rng, images, LAYOUTS[layout])
        turns = {family: ask(rng, scene) for family, ask in FAMILIES.items()}
        questions = tuple(Question(turn[0], turn[1], family) for family, turn in turns.items() if turn is not None)
        yield Scene(f"{layout} {seed} {number}", scene.image().convert("L").convert("RGB"), questions)


def draw_kept(
    model: Any, processor: Any, scenes: Sequence[Scene], names: Sequence[str], budget: float, path: Path
) -> None:
    """What each method keeps of a few scenes: a row per scene, a column per method."""
    figure, axes = plt.subplots(len(scenes), len(names), figsize=(2.2 * len(names), 2.3 * len(scenes)),
                                squeeze=False, layout="constrained")  # fmt: skip
    for column, name in enumerate(names):
        with token_pruner(model, processor, TokenPrunerConfig(**{**VARIANTS[name], "budget": budget})):
            grade_scenes(model, processor, scenes)
            kept = model.base_model.token_pruner.last
        for row, (scene, unit) in enumerate(zip(scenes, kept, strict=True)):
            axes[row, column].imshow(draw_kept_tokens(scene.image, unit.indices.tolist(), unit.grid))
            axes[row, column].axis("off")
        axes[0, column].set_title(name, fontsize=9)
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "token_retention")
    made.add_argument("--model", nargs="+", default=[str(TINY_VLM)], help="folders or ids of LLaVAs")
    made.add_argument("--evaluation-set", type=Path, default=EVALUATION_SET)
    made.add_argument("--seed", type=int, help="compose held-out scenes from this seed instead")
    made.add_argument("--layout", default="standard", help="layout of composed scenes")
    made.add_argument("--scenes", type=int, help="at most this many scenes (composed: this many, default 512)")
    made.add_argument(
        "--methods",
        nargs="+",
        choices=[*VARIANTS, RESIZED],
        metavar="METHOD",
        default=[*ONE_STAGE, RESIZED],
        help=f"the first is compared with; of {[*VARIANTS, RESIZED]}; by default those that see the image alone and "
        "drop tokens before the language model",
    )
    made.add_argument("--configs", nargs="+", type=Path, default=[], help="saved token pruner configs, as more rows")
    made.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the visual tokens")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    for folder in arguments.configs:
        saved = TokenPrunerConfig.from_pretrained(folder)
        VARIANTS[f"{saved.method}, {folder.name}"] = {f.name: getattr(saved, f.name) for f in fields(saved)}
        arguments.methods.append(f"{saved.method}, {folder.name}")

    if arguments.seed is None:
        scenes = load_evaluation_set(arguments.evaluation_set, arguments.scenes)
    else:
        scenes = list(composed(arguments.seed, arguments.layout, arguments.scenes or 512))
    grades = grade_models(arguments, scenes)
    tokens = {
        b: TokenPrunerConfig(budget=b).tokens_to_keep(grades.tokens) for b in sorted(arguments.budgets, reverse=True)
    }
    first = arguments.methods[0]
    result: dict[str, Any] = {
        "first": first,
        **compare(scenes, grades.pruned, grades.whole, grades.blind, grades.tokens, tokens, (first, "itg")),
        "models": grades.labels,
        "scenes": len(scenes),
        "questions": sum(len(scene.questions) for scene in scenes),
        "set": arguments.evaluation_set.name
        if arguments.seed is None
        else f"{arguments.layout}, seed {arguments.seed}",
    }
    write_json(arguments.output / "results.json", result)
    curves(result, arguments.output / "accuracy.png", ("id_pruner", "itg"), PANELS)
    drawn = [name for name in DRAWN if name in arguments.methods]
    draw_kept(*load_vlm(arguments.model[-1]), scenes[:4], drawn, 0.0625, arguments.output / "kept.png")
    write_table(arguments.output / "table.md", table(result))


@dataclass
class ModelGrades:
    """Grades of every model: with all tokens, shown noise, and by (method, budget); tokens of an image, unpruned."""

    labels: list[str]
    whole: list[Grades]
    blind: list[Grades]
    pruned: dict[tuple[str, float], list[Grades]]
    tokens: int = 0


def grade_models(arguments: argparse.Namespace, scenes: Sequence[Scene]) -> ModelGrades:
    """Grade every model with every method at every budget."""
    book = GradeBook(arguments.output / "grades.json", scenes)
    names = [Path(folder).name for folder in arguments.model]  # those of train_tiny_vlm.py are all called "model"
    labels = [name if name not in names[:i] else f"{name} {i}" for i, name in enumerate(names)]
    made = ModelGrades(labels, [], [], {})
    for label, folder in zip(labels, arguments.model, strict=True):
        model, processor = load_vlm(folder)
        with remember_images(model, size=24):  # the tower runs once, not once per method and budget
            made.whole.append(book(f"{label} all", lambda: grade_scenes(model, processor, scenes)))
            made.blind.append(book(f"{label} blind", lambda: grade_scenes(model, processor, shown_noise(scenes))))
            for budget in tqdm(arguments.budgets, desc=label):
                for name in tqdm(arguments.methods, desc=f"{budget:.1%}", leave=False):
                    measure = lambda: grade(model, processor, scenes, VARIANTS.get(name), budget)  # noqa: E731
                    made.pruned.setdefault((name, budget), []).append(book(f"{label} {name} {budget}", measure))
        made.tokens = visual_tokens(model)
    return made


if __name__ == "__main__":
    main()
