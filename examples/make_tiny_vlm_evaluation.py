"""Write the fixed evaluation set of the tiny VLM: `python -m examples.make_tiny_vlm_evaluation OUTPUT`.

Scenes are composed of Fashion-MNIST's test images, which no training scene contains. The folder loads with
`datasets.load_dataset("imagefolder", data_dir=OUTPUT)`: PNG files and one line of `metadata.jsonl` per scene.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.tiny_vlm.questions import FAMILIES
from examples.tiny_vlm.scenes import FASHION_MNIST, LAYOUTS, compose_scene, load_fashion_mnist


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
    for number in tqdm(range(arguments.scenes), desc="scenes"):
        rng = np.random.default_rng((arguments.seed, number))
        scene = compose_scene(rng, images, LAYOUTS[arguments.layout])
        name = f"images/{number:05d}.png"
        scene.image().convert("L").save(arguments.output / name, optimize=True)
        turns = {family: ask(rng, scene) for family, ask in FAMILIES.items()}
        asked = [{"question": t[0], "answer": t[1], "family": family} for family, t in turns.items() if t is not None]
        lines.append(json.dumps({"file_name": name, "questions": asked}))
    (arguments.output / "metadata.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
