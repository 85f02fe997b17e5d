"""The work folder of a fit, damaged or forged between two runs: told by file, never trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_efficient.video.encode.fit import Fit
from hf_efficient.video.encode.overfit import Recipe, load_checkpoint, overfit
from tests.fuzzing import limited_memory
from tests.video.bundles import started


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    fit = started(tmp_path_factory.mktemp("work"))
    fit.make_stores()
    recipe = Recipe(steps=2, batch_size=2, checkpoint_every=2)
    overfit(fit.new_network(fit.plan.spec("expert-0"), 0), fit.store("expert-0"), recipe, fit.checkpoint("expert-0"))
    return fit


def header(shape: str, dtype: str = "<f4") -> bytes:
    """An .npy file of a header alone."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


ARRAYS: dict[str, Any] = {
    "claims terabytes": header("(1000000000000, 12)"),
    "negative": header("(-1, 12)"),
    "of objects": header("(1, 12)", "|O"),
    "no tuple": header("12"),
    "code": header("__import__('os').getcwd()"),
    "empty": b"",
    "a pickle": b"\x80\x04N.",
    "a zip": b"PK\x03\x04" + bytes(60),
    "other columns": np.zeros((3, 5), np.float32),
    "other numbers": np.zeros((3, 12)),
    "no frame": np.zeros((0, 12), np.float32),
    "not finite": np.full((3, 12), np.nan, np.float32),
    "below zero": np.full((3, 12), -1, np.float32),
}


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
def test_errors_and_patches_of_other_work_are_reported(fit: Fit, content: Any) -> None:
    cells = fit.geometry.rows * fit.geometry.columns
    openings: Any = {"errors.npy": lambda: fit.plan, "expert-0/lr.npy": lambda: fit.store("expert-0")}
    for name, opened in openings.items():
        path = fit.work / name
        good = path.read_bytes()
        try:
            if isinstance(content, bytes):
                path.write_bytes(content.replace(b"12", b"%d" % cells))
            else:
                np.save(path, content if content.shape[1] != 12 else np.tile(content[:, :1], cells))
            with limited_memory(2**28), pytest.raises(ValueError, match=path.name):
                opened()
        finally:
            path.write_bytes(good)
    assert len(fit.store("expert-0")) > 0


CHECKPOINTS: dict[str, Any] = {
    "another width": lambda t: t.update({"net.tail.bias": torch.zeros(5)}),
    "no weight": lambda t: t.pop("net.tail.bias"),
    "no moment": lambda t: t.pop("adam.0.exp_avg"),
    "a moment of another shape": lambda t: t.update({"adam.0.exp_avg": torch.zeros(2)}),
    "one more": lambda t: t.update(other=torch.zeros(2)),
    "no step": lambda t: t.pop("step"),
    "half a step": lambda t: t.update(step=torch.tensor(1.5)),
    "a step before the first": lambda t: t.update(step=torch.tensor(-1)),
    "whole numbers for weights": lambda t: t.update({"net.tail.bias": torch.zeros(12, dtype=torch.int32)}),
}


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_of_other_networks_are_reported(fit: Fit, change: Any, tmp_path: Path) -> None:
    tensors = load_file(fit.checkpoint("expert-0"))
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    net = fit.new_network(fit.plan.spec("expert-0"), 0)
    with pytest.raises(ValueError, match=r"changed\.safetensors is damaged"):
        load_checkpoint(tmp_path / "changed.safetensors", net, torch.optim.Adam(net.parameters()))


def test_a_checkpoint_that_is_no_whole_file_is_reported(fit: Fit, tmp_path: Path) -> None:
    raw = fit.checkpoint("expert-0").read_bytes()
    net = fit.new_network(fit.plan.spec("expert-0"), 0)
    for content in (b"", raw[:-1], raw[:100], b"PK\x03\x04", (2**62).to_bytes(8, "little") + raw[8:]):
        (tmp_path / "cut.safetensors").write_bytes(content)
        with limited_memory(2**28), pytest.raises(ValueError, match=r"cut\.safetensors is damaged"):
            load_checkpoint(tmp_path / "cut.safetensors", net)


def test_a_record_that_is_not_ours_is_not_worked_with(fit: Fit) -> None:
    path = fit.work / "settings.json"
    good = path.read_text()
    for content in ("", "[]", '{"method": 1}', "\xff", "[" * 100_000, json.dumps({**json.loads(good), "steps": "x"})):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(FileExistsError, match=r"neither replaced nor deleted|other settings"):
            fit.prepare(overwrite=False)
    path.write_text(good)
    fit.prepare(overwrite=False)
