"""How much of a VLM's accuracy is left when most visual tokens are gone.

`python -m benchmarks.representation.token_retention`

Methods x budgets x question families on the tiny VLM and its fixed evaluation set, or on scenes that nobody tuned to:
`--seed 123 --layout crowded` composes them anew (needs Fashion-MNIST). Everything is measured in one run: exact-match
accuracy with 95 % confidence intervals (bootstrap over scenes), paired differences to ID-Pruner and to ITG, and as
anchors the model with all tokens and the model shown noise instead of the image. Several `--model` folders (training
seeds) are averaged and listed, and intervals then hold for scenes and seeds. Saved configs (`--configs`) are more rows.
Writes tables, a JSON with all numbers, curves, and images of what each method keeps. An interrupted run goes on where
it was: grades are written as they are made, and read again. After a change of a method's rule or defaults, `--again
METHOD` measures its rows anew.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.representation.grading import grade_models, scenes_of
from benchmarks.representation.packed_turns import grade_scenes
from benchmarks.representation.retention_statistics import compare, curves, table
from benchmarks.representation.token_generation import COVERAGE
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.evaluation.drawing import draw_kept_tokens
from hf_efficient.representation.evaluation.questions import EVALUATION_SET, TINY_VLM, Scene, load_vlm

RESIZED = "resized_image"
OTHERS = [name for name in REPRESENTATION.names if name not in ("id_pruner", "itg")]
#: Without sizes as they come; with them the name has a word more.
PLAIN = [name for name in OTHERS if not TokenPrunerConfig(method=name).wants_sizes]
SIZED = {f"{name}, proportional attention" if name in PLAIN else name: name for name in OTHERS}
#: Methods whose authors compare tokens before the projector.
ENCODER = ("vispruner", "scope", "visionzip", "prumerge")
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
    **{name: {"method": name} for name in OTHERS},
    **{row: {"method": name, "proportional_attention": True} for row, name in SIZED.items() if row != name},
    "cdpruner, question": {"method": "cdpruner", "question_weight": 1.0},
    "id_pruner, question": {"question_weight": 0.3},
    "itg, question": {"method": "itg", "question_weight": 0.3},
    **{f"{name}, encoder features": {"method": name, "features": "encoder"} for name in ENCODER},
    "fastv": {"llm_layers": [2]},  # all tokens up to layer 2, the budget's from there on
    "random in the language model": {"llm_layers": [2], "llm_choice": "random"},
    "ivc in the language model": {"llm_layers": [2], "llm_choice": "ivc"},
    "itg, then fastv": {"method": "itg", "llm_layers": [2], "llm_budget": 0.5},  # twice the budget up to layer 2
}
ONE_STAGE = [name for name, row in VARIANTS.items() if not {"llm_layers", "question_weight", "features"} & row.keys()]
#: Like beside like: nobody counts sizes, or everybody does.
PANELS = {
    "every kept token counts once": {
        "id_pruner": "id_pruner", "itg, plain attention": "itg", **{name: name for name in PLAIN}
    },
    "proportional attention for all": {
        "id_pruner, proportional attention": "id_pruner", "itg": "itg", **SIZED
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
    made.add_argument("--scenes", type=at_least_one, help="at most this many scenes (composed: this many, default 512)")
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
    made.add_argument("--again", nargs="+", default=[], help="methods whose stored grades are measured anew")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    for folder in arguments.configs:
        saved = TokenPrunerConfig.from_pretrained(folder)
        VARIANTS[f"{saved.method}, {folder.name}"] = {f.name: getattr(saved, f.name) for f in fields(saved)}
        arguments.methods.append(f"{saved.method}, {folder.name}")

    composed = arguments.seed is not None
    named = f"{arguments.layout}:{arguments.seed}" if composed else str(arguments.evaluation_set)
    scenes = scenes_of(named, arguments.scenes)
    rows = {name: VARIANTS.get(name) for name in arguments.methods}
    book = arguments.output / "grades.json"
    grades = grade_models(arguments.model, scenes, rows, arguments.budgets, book, arguments.again)
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
        "set": f"{arguments.layout}, seed {arguments.seed}" if composed else arguments.evaluation_set.name,
    }
    write_json(arguments.output / "results.json", result)
    curves(result, arguments.output / "accuracy.png", ("id_pruner", "itg"), PANELS)
    drawn = [name for name in DRAWN if name in arguments.methods]
    draw_kept(*load_vlm(arguments.model[-1]), scenes[:4], drawn, 0.0625, arguments.output / "kept.png")
    write_table(arguments.output / "table.md", table(result))


if __name__ == "__main__":
    main()
