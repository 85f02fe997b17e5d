"""How much of a VLM's accuracy is left when most visual tokens are gone: `python benchmarks/token_retention.py`.

Methods x budgets x question families on the tiny VLM and its fixed evaluation set (or, with --evaluation-set, on a
held-out one of `examples/make_tiny_vlm_evaluation.py --seed ... --layout ...`). Everything is measured in one run:
exact-match accuracy with 95 % confidence intervals (bootstrap over scenes), paired differences to ID-Pruner, and as
anchors the model with all tokens and the model shown noise instead of the picture. Writes a table, a JSON with all
numbers, curves, and pictures of what each method keeps.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import transformers
from packed_turns import grade_scenes
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.drawing import draw_kept_tokens
from hf_efficient.representation.evaluation import EVALUATION_SET, TINY_VLM, Scene, load_evaluation_set

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESIZED = "resized_picture"
METHODS = ("id_pruner", "top_importance", "max_min", "uniform", "random", RESIZED)
BUDGETS = (0.5, 0.25, 0.125, 0.0625, 0.03)
BOOTSTRAP_SAMPLES = 2000


def resized(tokens: int) -> Any:
    """The picture shrunk until the vision tower makes at most `tokens` visual tokens of it, nearly square."""

    def vision_inputs(model: Any, pixel_values: torch.Tensor) -> tuple[dict[str, Any], int]:
        patch = model.config.vision_config.patch_size
        rows = int(tokens**0.5)
        columns = tokens // rows if tokens // rows <= rows * 1.5 else rows
        small = torch.nn.functional.interpolate(
            pixel_values, size=(rows * patch, columns * patch), mode="bicubic", antialias=True, align_corners=False
        )
        encoded = model.base_model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True)
        return {"mm_encoder_outputs": {"image": encoded}}, rows * columns

    return vision_inputs


def grade(model: Any, processor: Any, scenes: Sequence[Scene], method: str, budget: float) -> list[list[bool]]:
    """Grades of all questions with one method at one budget."""
    config = TokenPrunerConfig(method="id_pruner" if method == RESIZED else method, budget=budget)
    if method == RESIZED:
        return grade_scenes(
            model, processor, scenes, vision_inputs=resized(config.tokens_to_keep(visual_tokens(model)))
        )
    with token_pruner(model, processor, config):
        return grade_scenes(model, processor, scenes)


def visual_tokens(model: Any) -> int:
    """Visual tokens of one picture, unpruned."""
    return model.config.image_seq_length


def shown_noise(scenes: Sequence[Scene]) -> list[Scene]:
    """The same questions about pictures of noise: what can be guessed."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (*scene.image.size[::-1], 3), np.uint8)) for scene in scenes]
    return [Scene(scene.name, image, scene.questions) for scene, image in zip(scenes, noise, strict=True)]


class Bootstrap:
    """Resamples scenes, the same way for every method, so that differences are paired."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        rng = np.random.default_rng(0)
        self.picks = rng.integers(0, len(scenes), (BOOTSTRAP_SAMPLES, len(scenes)))
        self.asked = np.array([len(scene.questions) for scene in scenes])

    def samples(self, graded: list[list[bool]]) -> np.ndarray:
        """(BOOTSTRAP_SAMPLES,) accuracies."""
        right = np.array([sum(row) for row in graded])
        return right[self.picks].sum(1) / self.asked[self.picks].sum(1)


def interval(samples: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in np.percentile(samples, [2.5, 97.5])]


def accuracy(graded: list[list[bool]]) -> float:
    return float(np.mean([right for row in graded for right in row]))


def by_family(scenes: Sequence[Scene], graded: list[list[bool]]) -> dict[str, float]:
    """Accuracy of each question family."""
    answers: dict[str, list[bool]] = {}
    for scene, row in zip(scenes, graded, strict=True):
        for question, right in zip(scene.questions, row, strict=True):
            answers.setdefault(question.family, []).append(right)
    return {family: round(float(np.mean(rights)), 4) for family, rights in answers.items()}


def row_of(scenes: Sequence[Scene], graded: list[list[bool]], bootstrap: Bootstrap, **labels: Any) -> dict[str, Any]:
    return {
        **labels, "accuracy": round(accuracy(graded), 4), "interval": interval(bootstrap.samples(graded)),
        "families": by_family(scenes, graded),
    }  # fmt: skip


def measure(
    model: Any, processor: Any, scenes: Sequence[Scene], methods: Sequence[str], budgets: Sequence[float]
) -> dict[str, Any]:
    """All rows of the table."""
    bootstrap = Bootstrap(scenes)
    everything = grade_scenes(model, processor, scenes)
    total = visual_tokens(model)
    anchors = [
        row_of(scenes, everything, bootstrap, method="all tokens", tokens=total),
        row_of(scenes, grade_scenes(model, processor, shown_noise(scenes)), bootstrap, method="blind", tokens=total),
    ]
    rows = []
    for budget in budgets:
        tokens = TokenPrunerConfig(budget=budget).tokens_to_keep(total)
        graded = {
            m: grade(model, processor, scenes, m, budget) for m in tqdm(methods, desc=f"{tokens} tokens", leave=False)
        }
        for method, grades in graded.items():
            row = row_of(scenes, grades, bootstrap, method=method, budget=budget, tokens=tokens)
            row["retention"] = round(row["accuracy"] / max(anchors[0]["accuracy"], 1e-9), 4)
            ours = graded[methods[0]]
            gap = bootstrap.samples(ours) - bootstrap.samples(grades)
            row["behind_first"] = round(accuracy(ours) - accuracy(grades), 4)
            row["behind_first_interval"] = interval(gap)
            rows.append(row)
    return {"anchors": anchors, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    families = list(result["anchors"][0]["families"])
    head = ["method", "tokens", "accuracy", "95 % interval", "behind ID-Pruner", *families]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in [*result["anchors"], *result["rows"]]:
        low, high = row["interval"]
        behind = ""
        if row.get("behind_first"):
            behind = "{:+.1%} ({:+.1%} to {:+.1%})".format(row["behind_first"], *row["behind_first_interval"])
        cells = [row["method"], str(row["tokens"]), f"{row['accuracy']:.1%}", f"{low:.1%} to {high:.1%}", behind]
        lines.append("| " + " | ".join(cells + [f"{row['families'][family]:.1%}" for family in families]) + " |")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy over tokens kept, a curve per method."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["method"] == method]
        tokens, values = [row["tokens"] for row in rows], np.array([row["accuracy"] for row in rows])
        bounds = np.array([row["interval"] for row in rows]).T
        style = {"linewidth": 2.5, "color": "black"} if method == "id_pruner" else {"linewidth": 1.3}
        axes.errorbar(tokens, values, np.abs(bounds - values), marker="o", capsize=3, label=method, **style)
    for anchor, line in zip(result["anchors"], ("--", ":"), strict=True):
        axes.axhline(anchor["accuracy"], linestyle=line, color="grey", label=anchor["method"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["tokens"] for row in result["rows"]}), minor=False)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel=f"visual tokens kept of {result['anchors'][0]['tokens']}", ylabel="exact-match accuracy")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def picture_kept(
    model: Any, processor: Any, scenes: Sequence[Scene], methods: Sequence[str], budget: float, path: Path
) -> None:
    """What each method keeps of a few scenes: a row per scene, a column per method."""
    selecting = [method for method in methods if method != RESIZED]
    figure, axes = plt.subplots(len(scenes), len(selecting), figsize=(2.2 * len(selecting), 2.3 * len(scenes)),
                                squeeze=False, layout="constrained")  # fmt: skip
    for column, method in enumerate(selecting):
        with token_pruner(model, processor, TokenPrunerConfig(method=method, budget=budget)):
            grade_scenes(model, processor, scenes)
            kept = model.base_model.token_pruner.last
        for row, (scene, unit) in enumerate(zip(scenes, kept, strict=True)):
            axes[row, column].imshow(draw_kept_tokens(scene.image, unit.indices.tolist(), unit.grid))
            axes[row, column].axis("off")
        axes[0, column].set_title(method, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY_VLM), help="folder or id of a LLaVA")
    parser.add_argument("--evaluation-set", type=Path, default=EVALUATION_SET)
    parser.add_argument("--scenes", type=int, help="only the first so many")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="the first is the one others are compared with")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="shares of the visual tokens")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "token_retention")
    arguments = parser.parse_args()

    model = AutoModelForImageTextToText.from_pretrained(arguments.model).eval()
    processor = AutoProcessor.from_pretrained(arguments.model)
    scenes = load_evaluation_set(arguments.evaluation_set, arguments.scenes)
    result = measure(model, processor, scenes, arguments.methods, arguments.budgets)
    result["scenes"], result["questions"] = len(scenes), sum(len(scene.questions) for scene in scenes)
    result["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.output / "table.md").write_text(table(result) + "\n")
    plot(result, arguments.output / "accuracy.png")
    picture_kept(model, processor, scenes[:4], arguments.methods, 0.125, arguments.output / "kept.png")
    print(table(result))


if __name__ == "__main__":
    main()
