"""Options that all benchmarks share."""

import argparse
from pathlib import Path

from hf_efficient.cli.stdo_options import at_least_one as at_least_one

RESULTS = Path(__file__).parents[1] / "results"


def common_parser(doc: str | None, name: str, *, threads: bool = False) -> argparse.ArgumentParser:
    """A parser with a benchmark's docstring as help and `--output`.

    Args:
        doc: the module's docstring.
        name: folder of the results within `benchmarks/results`.
        threads: add `--threads`, 1 by default.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=RESULTS / name, help="folder of the results")
    if threads:
        made.add_argument("--threads", type=int, default=1, help="threads of torch")
    return made
