"""Train a VLM behind DINOv2 on scenes that ask it to read, to point and to count.

`python -m examples.train_photo_vlm --output-dir runs/photo`

The tower is the first layers of DINOv2 ViT-S/14 as they are (a wheel of PyPI brings them); photographs, emoji and fonts
come from Debian packages: `python -m examples.photo_vlm.sources` fetches them. What the tower says of the scenes is
made once, into a folder that several seeds can share (`--features`). Projector and language model learn from scratch
with the HF Trainer: first with many turns an image and with patches that say what they show, then few turns, among them
the families that are learned last. The same command again goes on after an interruption.

Needs Fashion-MNIST (Debian: `apt-get install dataset-fashion-mnist`) and the package onnx. Uses bfloat16 autocast.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import LlavaForConditionalGeneration, Trainer, set_seed

from benchmarks.models.dinov2_from_wheel import weights_for
from examples.photo_vlm.architecture import make_processor, make_vlm
from examples.photo_vlm.data import PhotoTurns, encode_scenes, load_encoded
from examples.photo_vlm.scenes import LAYOUTS, Scene, compose_scene
from examples.tiny_vlm.data import collate_turns
from examples.tiny_vlm.encoded import FromFile, standardize
from examples.tiny_vlm.scenes import FASHION_MNIST, Images, load_fashion_mnist
from examples.tiny_vlm.training import save_stage, train_on, training_arguments

#: Different scenes of each layout: documents are full of words, numbers and charts, which are learned last.
SCENES = {"standard": 12000, "documents": 6000}
#: Stages: learning rate, turns of a scene, whether patches are trained to say what they show, what is always asked.
STAGES: dict[str, tuple[float, int, bool, tuple[str, ...]]] = {
    "all": (1e-3, 36, True, ()),
    "answers": (5e-4, 10, False, ("chart", "detail", "count")),
}


def with_tower(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The model with DINOv2's weights in its tower, frozen."""
    tower = model.model.vision_tower
    tower.load_state_dict(weights_for(tower))
    tower.requires_grad_(False)
    return model


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output-dir", type=Path, required=True)
    made.add_argument("--features", type=Path, help="folder of encoded scenes; default OUTPUT/features")
    made.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, help="folder of the four .gz files")
    made.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(SCENES), help="of the scenes")
    made.add_argument("--scenes", nargs="+", type=int, default=list(SCENES.values()), help="how many of each layout")
    made.add_argument("--steps", nargs=len(STAGES), type=int, default=[6000, 3000], help="of each stage")
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--seed", type=int, default=0, help="another seed trains another model on the same scenes")
    made.add_argument("--only-encode", action="store_true", help="make the features and stop")
    return made


def main() -> None:
    arguments = parser().parse_args()
    garments = load_fashion_mnist("train", arguments.fashion_mnist)
    folder = arguments.features or arguments.output_dir / "features"
    set_seed(arguments.seed)
    processor = make_processor()
    model = with_tower(make_vlm(processor.tokenizer))
    tower = model.model.vision_tower
    for number, (name, count) in enumerate(zip(arguments.layouts, arguments.scenes, strict=True)):
        compose = composer(garments, name, number)
        encode_scenes(tower, processor.image_processor, compose, count, folder / name)
    if arguments.only_encode:
        return
    pools = [load_encoded(folder / name) for name in arguments.layouts]
    standardize(model.model.multi_modal_projector.linear_1, pools[0][0])
    for stage, steps in zip(STAGES, arguments.steps, strict=True):
        done = arguments.output_dir / stage / "model"
        if done.exists():
            model = LlavaForConditionalGeneration.from_pretrained(done)
            continue
        rate, turns, patches, first = STAGES[stage]
        data = PhotoTurns(pools, processor.tokenizer, steps * arguments.batch, arguments.seed, turns, patches, first)
        model.model.vision_tower = FromFile(tower.config.num_hidden_layers + 1)
        training = training_arguments(done.parent, steps, arguments.batch, rate, arguments.seed)
        train_on(Trainer(model, training, train_dataset=data, data_collator=collate_turns))
        model.model.vision_tower = tower
        save_stage(model, processor, done)


def composer(garments: Images, layout: str, seed: int) -> Callable[[int], Scene]:
    """From a number to the training scene of a layout."""
    return lambda number: compose_scene(np.random.default_rng((seed, number)), garments, LAYOUTS[layout])


if __name__ == "__main__":
    main()
