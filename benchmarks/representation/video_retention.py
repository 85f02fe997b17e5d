"""What is left of answers about clips when their frames share one budget.

`python -m benchmarks.representation.video_retention`

A clip is a scene of the tiny VLM seen in several frames: noise is drawn anew in each, and every garment is hidden under
noise in about half of them, never in all. The vision tower reads the frames one by one; their tokens form one unit, of
which a method keeps K, and the language model, trained on single images, answers the questions about the scene. The
same garment in several frames is one garment: whoever keeps it twice counts it twice. Scenes are composed from a seed
(needs Fashion-MNIST). Same statistics as `token_retention.py`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.harness.intervals import interval
from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.representation.packed_turns import grade_scenes
from benchmarks.representation.retention_statistics import accuracy, bootstrap_of, curves, leads_of, row_of, table
from benchmarks.representation.token_representation import given
from hf_efficient import TokenPrunerConfig, reduce_tokens
from hf_efficient.representation.evaluation.questions import TINY_VLM, Question, Scene, load_vlm
from hf_efficient.representation.vlm.families import family_of
from hf_efficient.representation.vlm.families.family import VisualInputs

HIDDEN = 0.5  # share of frames in which a garment is under noise
OURS = ("id_pruner", "itg")
VARIANTS: dict[str, dict[str, Any]] = {
    "id_pruner": {},
    "id_pruner, static merged": {"merge_static": 0.8},
    "itg": {"method": "itg"},
    "itg, static merged": {"method": "itg", "merge_static": 0.8},
    "divprune": {"method": "divprune"},
    "scope": {"method": "scope"},
    "v_cast": {"method": "v_cast"},
    "restore": {"method": "restore"},
    "tome": {"method": "tome"},
    "top_importance": {"method": "top_importance"},
    "uniform": {"method": "uniform"},
    "random": {"method": "random"},
}
BUDGETS = (144, 72, 36, 18, 9)


def clips(seed: int, count: int, frames: int) -> list[tuple[Scene, list[Image.Image]]]:
    """Scenes with their questions, and the frames they are seen in."""
    from examples.tiny_vlm.questions import FAMILIES
    from examples.tiny_vlm.scenes import LAYOUTS, PLACE_SIDE, compose_scene, load_fashion_mnist

    images, made = load_fashion_mnist("t10k"), []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene = compose_scene(rng, images, LAYOUTS["standard"])
        turns = {family: ask(rng, scene) for family, ask in FAMILIES.items()}
        questions = tuple(Question(turn[0], turn[1], family) for family, turn in turns.items() if turn is not None)
        still = np.asarray(scene.image().convert("L"))
        hidden = rng.random((frames, len(scene.items))) < HIDDEN
        hidden[rng.integers(0, frames, len(scene.items)), np.arange(len(scene.items))] = False
        shown = []
        for gone in hidden:
            frame = still.astype(np.int64) + rng.integers(0, 12, still.shape)
            for item, away in zip(scene.items, gone, strict=True):
                if away:
                    top, left = (side * PLACE_SIDE for side in divmod(item.place, 3))
                    frame[top : top + PLACE_SIDE, left : left + PLACE_SIDE] = rng.integers(
                        0, 40, (PLACE_SIDE, PLACE_SIDE)
                    )
            shown.append(Image.fromarray(frame.clip(0, 255).astype(np.uint8)).convert("RGB"))
        made.append((Scene(str(number), shown[0], questions), shown))
    return made


@torch.no_grad()
def encode_frames(model: Any, processor: Any, shown: Sequence[list[Image.Image]]) -> tuple[Tensor, Tensor]:
    """Features (S, T·N, D) and [CLS] attention (S, T·N) of clips of T frames."""
    family, features, scores = family_of(model), [], []
    for frames in tqdm(shown, desc="clips"):
        pixels = processor.image_processor(images=frames, return_tensors="pt")["pixel_values"]
        images = VisualInputs(model.base_model, "image", {"pixel_values": pixels})
        with family.attention(images, "cls") as watch:
            output = images.function()(pixel_values=pixels, return_dict=True)
        features.append(torch.cat(list(output.pooler_output)))
        scores.append(torch.cat(family.scores(images, watch.result(), family.units(images))))
    return torch.stack(features), torch.stack(scores)


def grade_clips(
    model: Any,
    processor: Any,
    scenes: Sequence[Scene],
    features: Tensor,
    scores: Tensor,
    frames: int,
    config: TokenPrunerConfig,
) -> list[list[bool]]:
    """Grades of all questions with K tokens of every clip."""
    groups = torch.arange(features.shape[1]) // (features.shape[1] // frames)
    at = iter(range(0, len(scenes), 64))

    def vision_inputs(model: Any, pixels: Tensor, batch: Sequence[Scene]) -> tuple[Any, int]:
        start = next(at)
        rows = slice(start, start + len(batch))
        reduced = reduce_tokens(features[rows], config, given(config, scores[rows]), groups=groups)
        return BaseModelOutputWithPooling(pooler_output=list(reduced.tokens)), reduced.tokens.shape[1]

    return grade_scenes(model, processor, scenes, batch_size=64, vision_inputs=vision_inputs)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "video_retention")
    made.add_argument("--model", default=str(TINY_VLM), help="folder or id of a LLaVA")
    made.add_argument("--seed", type=int, default=2027)
    made.add_argument("--clips", type=at_least_one, default=256)
    made.add_argument("--frames", type=at_least_one, default=4)
    made.add_argument("--methods", nargs="+", default=list(VARIANTS), help="the first is compared with")
    made.add_argument("--budgets", nargs="+", type=int, default=BUDGETS, help="tokens of a clip")
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)

    model, processor = load_vlm(arguments.model)
    made = clips(arguments.seed, arguments.clips, arguments.frames)
    scenes = [scene for scene, _ in made]
    features, scores = encode_frames(model, processor, [shown for _, shown in made])
    bootstrap, total = bootstrap_of(scenes), features.shape[1]
    alone = [grade_scenes(model, processor, scenes)]  # what one frame can tell
    anchors = [row_of(scenes, alone, bootstrap, method="first frame, whole", tokens=total // arguments.frames)]
    rows, leads = [], []
    for budget in tqdm(arguments.budgets, desc="budgets"):
        graded = {
            name: grade_clips(model, processor, scenes, features, scores, arguments.frames,
                              TokenPrunerConfig(**{**VARIANTS[name], "budget": budget}))
            for name in tqdm(arguments.methods, leave=False)
        }  # fmt: skip
        first = graded[arguments.methods[0]]
        for name, grades in graded.items():
            row = row_of(scenes, [grades], bootstrap, method=name, budget=budget / total, tokens=budget)
            row["behind_first"] = round(accuracy([first]) - accuracy([grades]), 4)
            row["behind_first_interval"] = interval(bootstrap.samples([first]) - bootstrap.samples([grades]))
            rows.append(row)
        here = {name: [grades] for name, grades in graded.items()}
        leads += [{"tokens": budget, **lead} for lead in leads_of(here, bootstrap, OURS)]
    result = {"first": arguments.methods[0], "anchors": anchors, "rows": rows, "leads": leads, "clips": len(scenes),
              "frames": arguments.frames, "seed": arguments.seed, "tokens of a clip": total}  # fmt: skip
    write_json(arguments.output / "results.json", result)
    write_table(arguments.output / "table.md", table(result))
    curves(result, arguments.output / "accuracy.png", ("id_pruner", "itg, static merged", "itg"))


if __name__ == "__main__":
    main()
