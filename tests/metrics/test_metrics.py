"""Metrics against counts by hand, with and without `evaluate`."""

import ast
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_efficient import metrics
from hf_efficient.metrics import Plain, functions

RIGHT = ["bag", "shoe bag", "yes", "no"]
FRAME = np.full((16, 16, 3), 100, dtype=np.uint8)
CASES: dict[str, tuple[Any, Any, dict[str, Any], dict[str, float]]] = {
    "token_retention": (["bag", "shoe", "yes", "yes"], RIGHT, {"stock": ["bag", "Shoe  bag", "yes", "yes"]},
                        {"accuracy": 0.5, "stock_accuracy": 0.75, "retention": 2 / 3, "same": 0.75}),
    "exact_match_by_family": (["bag", "shoe", "yes", "no"], RIGHT, {"families": ["what", "what", "is", "is"]},
                              {"exact_match": 0.75, "mean_of_families": 0.75, "is": 1.0, "what": 0.5}),
    "sparsity": ([10, 20], [100, 200], {"dense": 100}, {"sparsity": 0.9, "whole_model": 270 / 400}),
    "video_quality": ([FRAME + 10, FRAME], [FRAME, FRAME], {},
                      {"psnr_rgb": 10 * math.log10(255**2 / 50), "psnr_luma": 10 * math.log10(255**2 / 50)}),
    "forgetting": ([0.5, 0.7], [0.9, 0.6], {}, {"forgetting": 0.15, "largest": 0.4}),
    "loss_rise": ([1.5, 1.2], [1.0, 1.1], {}, {"sharpness": 0.3, "largest": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", metrics.NAMES)
def test_a_metric_is_what_is_counted_by_hand(name: str) -> None:
    predictions, references, more, wanted = CASES[name]
    found = Plain(name).compute(predictions=predictions, references=references, **more)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


@pytest.mark.skipif(find_spec("evaluate") is None, reason="evaluate is not installed")
@pytest.mark.parametrize("name", metrics.NAMES)
def test_evaluate_loads_it_offline(name: str) -> None:
    predictions, references, more, wanted = CASES[name]
    found = metrics.load(name).compute(predictions=predictions, references=references, **more)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)


def test_every_metric_has_a_folder_whose_module_is_its_own() -> None:
    assert set(CASES) == set(metrics.NAMES)
    for name in metrics.NAMES:
        source = (Path(metrics.path(name)) / f"{name}.py").read_text()
        assert f"face.metric('{name}')" in ast.unparse(ast.parse(source))


def test_same_frames_and_similar_ones() -> None:
    same = functions.video_quality([FRAME], [FRAME])
    assert same["psnr_rgb"] == math.inf
    assert same["ssim_luma"] == pytest.approx(1)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="'oak' is not known"):
        metrics.load("oak")
    with pytest.raises(ValueError, match="0 scores for 1"):
        functions.forgetting([], [1.0])
    with pytest.raises(ValueError, match="expected the same size"):
        functions.video_quality([FRAME], [FRAME[:8]])
    with pytest.raises(ValueError, match="expected the same size"):
        functions.video_quality([FRAME[..., 0]], [FRAME[..., 0]])
    with pytest.raises(ValueError, match="'exact_match' is the name of a mean"):
        functions.exact_match_by_family(["a"], ["a"], ["exact_match"])
    for left, size in ((5, 2), (0, 0), (-1, 2)):
        with pytest.raises(ValueError, match="expected 0 to as many"):
            functions.sparsity([left], [size])
