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
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.retention_statistics import Grades, compare, curves, table
from benchmarks.representation.packed_turns import grade_scenes
from benchmarks.representation.token_generation import COVERAGE
from hf_efficient import TokenPrunerConfig, remember_images, token_pruner
from hf_efficient.files import write_text
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
from hf_efficient.representation.selection import METHODS
from hf_efficient.representation.vlm.decoder.calls import Call, under_way
from hf_efficient.representation.vlm.inputs import Prompt

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESIZED = "resized_image"
OTHERS = [name for name in METHODS if name not in ("id_pruner", "itg")]
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


class GradeBook:
    """Grades by name, kept in a file as hexadecimal bits."""

    def __init__(self, path: Path, scenes: Sequence[Scene]) -> None:
        self.path, self.counts = path, [len(scene.questions) for scene in scenes]
        self.books: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}

    def __call__(self, name: str, measure: Any) -> Grades:
        """The grades of this name, measured if they are not in the file yet."""
        if name not in self.books:
            bits = "".join(str(int(right)) for row in measure() for right in row)
            self.books[name] = f"{int('1' + bits, 2):x}"
            write_text(self.path, json.dumps(self.books, indent=0) + "\n")
        rights = iter(bin(int(self.books[name], 16))[3:])
        grades = [[next(rights) == "1" for _ in range(count)] for count in self.counts]
        if next(rights, None) is not None:
            raise SystemExit(f"{self.path} was written for other scenes; remove it, or choose another --output.")
        return grades


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
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[str(TINY_VLM)], help="folders or ids of LLaVAs")
    parser.add_argument("--evaluation-set", type=Path, default=EVALUATION_SET)
    parser.add_argument("--seed", type=int, help="compose held-out scenes from this seed instead")
    parser.add_argument("--layout", default="standard", help="layout of composed scenes")
    parser.add_argument("--scenes", type=int, help="only the first so many (composed: how many, default 512)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[*ONE_STAGE, RESIZED],
        help=f"the first is compared with; of {[*VARIANTS, RESIZED]}; by default those that see the image alone and "
        "drop tokens before the language model",
    )
    parser.add_argument("--configs", nargs="+", type=Path, default=[], help="saved token pruner configs, as more rows")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the visual tokens")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results" / "token_retention")
    arguments = parser.parse_args()
    for folder in arguments.configs:
        saved = TokenPrunerConfig.from_pretrained(folder)
        VARIANTS[f"{saved.method}, {folder.name}"] = {f.name: getattr(saved, f.name) for f in fields(saved)}
        arguments.methods.append(f"{saved.method}, {folder.name}")

    if arguments.seed is None:
        scenes = load_evaluation_set(arguments.evaluation_set, arguments.scenes)
    else:
        scenes = list(composed(arguments.seed, arguments.layout, arguments.scenes or 512))
    arguments.output.mkdir(parents=True, exist_ok=True)
    book = GradeBook(arguments.output / "grades.json", scenes)
    everything: list[Grades] = []
    blind: list[Grades] = []
    graded: dict[tuple[str, float], list[Grades]] = {}
    names = [Path(folder).name for folder in arguments.model]  # those of train_tiny_vlm.py are all called "model"
    labels = [name if name not in names[:i] else f"{name} {i}" for i, name in enumerate(names)]
    for label, folder in zip(labels, arguments.model, strict=True):
        model, processor = load_vlm(folder)
        with remember_images(model, size=24):  # the tower runs once, not once per method and budget
            everything.append(book(f"{label} all", lambda: grade_scenes(model, processor, scenes)))
            blind.append(book(f"{label} blind", lambda: grade_scenes(model, processor, shown_noise(scenes))))
            for budget in tqdm(arguments.budgets, desc=label):
                for name in tqdm(arguments.methods, desc=f"{budget:.1%}", leave=False):
                    measure = lambda: grade(model, processor, scenes, VARIANTS.get(name), budget)  # noqa: E731
                    graded.setdefault((name, budget), []).append(book(f"{label} {name} {budget}", measure))
    total = visual_tokens(model)
    tokens = {
        budget: TokenPrunerConfig(budget=budget).tokens_to_keep(total)
        for budget in sorted(arguments.budgets, reverse=True)
    }
    result: dict[str, Any] = {
        "first": arguments.methods[0],
        **compare(scenes, graded, everything, blind, total, tokens, (arguments.methods[0], "itg")),
        "models": labels,
        "scenes": len(scenes),
        "questions": sum(len(scene.questions) for scene in scenes),
        "set": str(arguments.evaluation_set.name)
        if arguments.seed is None
        else f"{arguments.layout}, seed {arguments.seed}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (arguments.output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / "table.md").write_text(table(result) + "\n")
    curves(result, arguments.output / "accuracy.png", ("id_pruner", "itg"), PANELS)
    drawn = [name for name in DRAWN if name in arguments.methods]
    draw_kept(model, processor, scenes[:4], drawn, 0.0625, arguments.output / "kept.png")
    print(table(result))


if __name__ == "__main__":
    main()
