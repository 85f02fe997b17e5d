"""The example on several processes runs as it says: both ways to share the work end with the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.examples.test_classification import run


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bidst", "s2sam"])
def test_ddp_and_fsdp2_learn_the_same(method: str, tmp_path: Path) -> None:
    found = []
    for sharding in ("ddp", "fsdp2"):
        folder = tmp_path / sharding
        words = ["--method", method, "--sharding", sharding, "--steps", "12", "--output", str(folder)]
        run("several_processes", *words, processes=2)
        found.append(load_file(folder / "model.safetensors"))
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, atol=1e-4, rtol=1e-3, msg=lambda m: f"{key}: {m}")
    if method == "bidst":
        linear = [t for key, t in found[1].items() if "layer" in key and t.dim() == 2]
        zeros = sum(int((t == 0).sum()) for t in linear) / sum(t.numel() for t in linear)
        assert zeros == pytest.approx(0.9, abs=0.01)
