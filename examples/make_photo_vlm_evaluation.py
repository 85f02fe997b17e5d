"""Write an evaluation set of the VLM behind DINOv2: `python -m examples.make_photo_vlm_evaluation OUTPUT --split test`.

The photographs may not be passed on by everybody, so the sets are not files of this repository but this command: the
same packages, the same pictures. A digest of all pixels and questions tells whether the fixed sets came out as they
were (another release of Pillow may draw a pixel otherwise). `--layout` and `--seed` make sets that nobody chose on.
The folder loads with `datasets.load_dataset("imagefolder", data_dir=OUTPUT)`.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from examples.photo_vlm.evaluation import held_out
from examples.photo_vlm.scenes import LAYOUTS
from examples.tiny_vlm.evaluation import digest_of, line_of
from examples.tiny_vlm.scenes import FASHION_MNIST, load_fashion_mnist
from hf_efficient.representation.evaluation.questions import load_evaluation_set

SEEDS = {"test": 2026, "validation": 411}
COUNTS = {"test": 480, "validation": 256}
#: Of the fixed sets: first 16 digits of the SHA-256 of every scene's pixels and questions.
DIGESTS = {"test": "f0c08bfbee348a27", "validation": "2b66b0a50feda214"}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("output", type=Path)
    made.add_argument("--split", choices=SEEDS, default="test", help="whose photographs")
    made.add_argument("--scenes", type=int, help="how many; default 480 of the test, 256 of validation")
    made.add_argument("--seed", type=int, help="another seed makes other scenes")
    made.add_argument("--layout", choices=LAYOUTS, default="standard")
    made.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, help="folder of the four .gz files")
    return made


def main() -> None:
    arguments = parser().parse_args()
    garments = load_fashion_mnist("t10k", arguments.fashion_mnist)
    count = arguments.scenes or COUNTS[arguments.split]
    seed = SEEDS[arguments.split] if arguments.seed is None else arguments.seed
    (arguments.output / "images").mkdir(parents=True)
    lines = []
    scenes = held_out(arguments.split, arguments.layout, seed, count, garments)
    for number, (scene, questions) in enumerate(tqdm(scenes, desc="scenes", total=count)):
        name = f"images/{number:05d}.png"
        scene.image().save(arguments.output / name)
        lines.append(line_of(name, questions, photograph=scene.photograph))
    (arguments.output / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    fixed = (seed, count, arguments.layout) == (SEEDS[arguments.split], COUNTS[arguments.split], "standard")
    expected = DIGESTS[arguments.split] if fixed else ""
    made = digest_of(load_evaluation_set(arguments.output))
    print(f"digest {made}" + (f", not {expected} as published" if expected not in ("", made) else ""))


if __name__ == "__main__":
    main()
