"""Write the fixed evaluation set of the tiny VLM: `python -m examples.make_tiny_vlm_evaluation OUTPUT`.

Scenes are composed of Fashion-MNIST's test images, which no training scene contains. The folder loads with
`datasets.load_dataset("imagefolder", data_dir=OUTPUT)`: PNG files and one line of `metadata.jsonl` per scene.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from examples.tiny_vlm.evaluation import held_out, line_of
from examples.tiny_vlm.scenes import FASHION_MNIST, LAYOUTS, load_fashion_mnist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scenes", type=int, default=512)
    parser.add_argument("--seed", type=int, default=2026, help="another seed makes a held-out set")
    parser.add_argument("--layout", choices=LAYOUTS, default="standard")
    parser.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, help="folder of the four .gz files")
    arguments = parser.parse_args()

    images = load_fashion_mnist("t10k", arguments.fashion_mnist)
    (arguments.output / "images").mkdir(parents=True)
    lines = []
    scenes = held_out(arguments.layout, arguments.seed, arguments.scenes, images)
    for number, (scene, questions) in enumerate(tqdm(scenes, desc="scenes", total=arguments.scenes)):
        name = f"images/{number:05d}.png"
        scene.image().convert("L").save(arguments.output / name, optimize=True)
        lines.append(line_of(name, questions))
    (arguments.output / "metadata.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
