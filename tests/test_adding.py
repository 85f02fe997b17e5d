"""The examples of docs/adding.md are run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.video.bundles import source_clip

EXAMPLES = dict(
    re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", (ROOT / "docs/adding.md").read_text(), re.DOTALL | re.MULTILINE)
)
PRINTED = {
    "A selection method": "ReducedTokens(selected, 64 of 576",
    "A topology": "'mask_updates': ",
    "A SAM variant": "NoiseVariant()",
    "A backbone": "bundle",
    "A video method": "hardest",
    "A family of vision-language models": "torch.Size",
}


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) == set(PRINTED)


@pytest.mark.parametrize("heading", PRINTED)
def test_an_example_is_short_and_runs(heading: str, tmp_path: Path) -> None:
    code = EXAMPLES[heading]
    assert sum(bool(line.strip()) for line in code.splitlines()) < 30
    (tmp_path / "example.py").write_text(code)
    if "in.mp4" in code:
        source_clip(tmp_path).rename(tmp_path / "in.mp4")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert PRINTED[heading] in run.stdout
