"""Training seeds of the tiny VLM: `python -m benchmarks.models.tiny_vlm RUN`.

Seed 0 ships with the package; seed 1 lies here, for benchmarks alone. The command writes it, as float16, from what
`python -m examples.train_tiny_vlm --output-dir OUTPUT --seed 1` left: RUN is OUTPUT/answers/model.
"""

import argparse
from pathlib import Path

from benchmarks.models.half_precision import export_half
from hf_efficient.representation.evaluation.questions import TINY_VLM

FOLDERS = {0: TINY_VLM, 1: Path(__file__).parent / "tiny_vlm_seed1"}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", type=Path, metavar="RUN", help="the trained model of seed 1")
    made.add_argument("--folder", type=Path, default=FOLDERS[1], help="where it is written")
    return made


def main() -> None:
    arguments = parser().parse_args()
    export_half(arguments.run, arguments.folder)


if __name__ == "__main__":
    main()
