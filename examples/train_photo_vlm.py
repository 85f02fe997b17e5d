"""Train a VLM behind DINOv2 on scenes that ask it to read, to point and to count.

`python -m examples.train_photo_vlm --output-dir runs/photo`

The tower is the first layers of DINOv2 ViT-S/14 as they are (a wheel of PyPI brings them); photographs, emoji and fonts
come from Debian packages: `python -m examples.photo_vlm.sources` fetches them. What the tower says of the scenes is
made once, into a folder that several seeds can share (`--features`). Projector and language model learn from scratch
with the HF Trainer, many turns an image; the same command again goes on after an interruption.

Needs Fashion-MNIST (Debian: `apt-get install dataset-fashion-mnist`) and the package onnx. Uses bfloat16 autocast.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments, set_seed

from benchmarks.models.dinov2_from_wheel import load_dinov2
from examples.photo_vlm.architecture import make_processor, make_vlm
from examples.photo_vlm.data import PhotoTurns, encode_scenes, load_encoded
from examples.photo_vlm.scenes import LAYOUTS, Scene, compose_scene
from examples.tiny_vlm.data import collate_turns
from examples.tiny_vlm.encoded import FromFile, standardize, train_on
from examples.tiny_vlm.scenes import FASHION_MNIST, Images, load_fashion_mnist

#: Different scenes of each layout: documents are full of words, numbers and charts, which are learned last.
SCENES = {"standard": 12000, "documents": 6000}


def training_arguments(arguments: argparse.Namespace) -> TrainingArguments:
    """AdamW, warm-up, cosine; a checkpoint every few minutes."""
    return TrainingArguments(
        output_dir=str(arguments.output_dir), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.learning_rate, warmup_steps=200, lr_scheduler_type="cosine", weight_decay=0.05,
        adam_beta2=0.98, max_grad_norm=1.0, bf16=True, seed=arguments.seed, data_seed=arguments.seed, logging_steps=25,
        save_steps=250, save_total_limit=2, remove_unused_columns=False, dataloader_num_workers=1, report_to="none",
        disable_tqdm=True, train_sampling_strategy="sequential", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip


def with_tower(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The model with DINOv2's weights in its tower, frozen."""
    tower = model.model.vision_tower
    known = load_dinov2().state_dict()
    tower.load_state_dict({name: known[name] for name in tower.state_dict()})
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
    made.add_argument("--steps", type=int, default=6000)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--learning-rate", type=float, default=1e-3)
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
    tower.bfloat16()
    for number, (name, count) in enumerate(zip(arguments.layouts, arguments.scenes, strict=True)):
        compose = composer(garments, name, number)
        encode_scenes(tower, processor.image_processor, compose, count, folder / name)
    tower.float()
    if arguments.only_encode:
        return
    pools = [load_encoded(folder / name) for name in arguments.layouts]
    data = PhotoTurns(pools, processor.tokenizer, arguments.steps * arguments.batch, arguments.seed)
    standardize(model.model.multi_modal_projector.linear_1, pools[0][0])
    model.model.vision_tower = FromFile(tower.config.num_hidden_layers + 1)
    trainer = Trainer(model, training_arguments(arguments), train_dataset=data, data_collator=collate_turns)
    train_on(trainer)
    model.model.vision_tower = tower
    with_tower(model).save_pretrained(arguments.output_dir / "model")
    processor.save_pretrained(arguments.output_dir / "model")


def composer(garments: Images, layout: str, seed: int) -> Callable[[int], Scene]:
    """From a number to the training scene of a layout."""
    return lambda number: compose_scene(np.random.default_rng((seed, number)), garments, LAYOUTS[layout])


if __name__ == "__main__":
    main()
