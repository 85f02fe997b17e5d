"""The benchmark of S2-SAM's gain over sparsity: masks hold, and all is chosen on validation labels as noisy."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.optimization import sam_sparsity as bench

SETTING = "mlp, 95% sparse, 40% wrong"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kinds of pictures that are easily told apart, and few epochs."""
    generator = torch.Generator().manual_seed(0)
    kinds, labels = torch.randn(10, 1, 28, 28, generator=generator), torch.arange(2200) % 10
    x = kinds[labels] + torch.randn(2200, 1, 28, 28, generator=generator)
    monkeypatch.setattr(bench, "images", lambda: (x[:2000], labels[:2000], x[2000:], labels[2000:]))
    monkeypatch.setattr(bench, "SETTINGS", {SETTING: dataclasses.replace(bench.SETTINGS[SETTING], epochs=4)})


def test_labels_of_both_parts_are_wrong_and_the_parts_have_no_image_in_common() -> None:
    x, y, held_x, held_y = bench.data(0.4, 3)
    assert (len(x), len(held_x)) == (bench.SIZE, bench.HELD_OUT)
    everything, labels, *_ = bench.images()
    right = {tuple(image.flatten()[:4].tolist()): int(label) for image, label in zip(everything, labels, strict=True)}
    for images, given in ((x, y), (held_x, held_y)):
        true = torch.tensor([right[tuple(image.flatten()[:4].tolist())] for image in images])
        assert float((given != true).float().mean()) == pytest.approx(0.4, abs=0.07)
    seen = {tuple(image.flatten()[:4].tolist()) for image in x}
    assert not seen & {tuple(image.flatten()[:4].tolist()) for image in held_x}


@pytest.mark.parametrize("method", list(bench.METHODS))
def test_masks_hold_and_all_weights_move_where_the_method_says_so(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nets: list[tuple[Any, list[tuple[Tensor, Tensor]]]] = []
    moved: list[bool] = []
    make, loss_of = bench.network, bench.loss_of

    def kept(*args: Any) -> Any:
        nets.append(make(*args))
        return nets[-1]

    def watched(net: Any, *args: Any) -> Tensor:
        weight, mask = nets[-1][1][0]
        moved.append(bool((weight[~mask] != 0).any()))
        return loss_of(net, *args)

    monkeypatch.setattr(bench, "network", kept)
    monkeypatch.setattr(bench, "loss_of", watched)
    found = bench.train(bench.Run(SETTING, method, 0.3 if method != "plain" else 1.0, 0))
    assert set(found) == {"training", *(f"{of}, {way}" for of in ("validation", "test") for way in bench.WAYS)}
    assert found["validation, stopped"] >= found["validation, end"]
    for weight, mask in nets[0][1]:
        assert not weight[~mask].any()
        assert float(mask.float().mean()) == pytest.approx(0.05, abs=1e-3)
    assert any(moved) == ("all weights" in method)


def test_dials_are_chosen_on_validation_images_alone_and_gains_are_paired() -> None:
    runs: bench.Runs = {}
    for run in bench.work(runs, [SETTING], list(bench.METHODS), 3):
        tuning = run.seed in bench.TUNING_SEEDS
        best = 0.8 if run.method == "s2sam" else 0.5
        quality = 60.0 + 5 * (run.dial == best)
        runs[run.key] = {"training": 90.0, **{f"validation, {way}": quality for way in bench.WAYS}}
        if not tuning:
            assert run.dial == best or run.method.startswith(("sam", "s2sam, "))
            gain = run.seed + 1 if run.method == "s2sam" else 0
            runs[run.key] |= {f"test, {way}": 50.0 + 7 * run.seed + gain for way in bench.WAYS}
    assert bench.chosen(runs, SETTING, "s2sam", "end") == 0.8
    row = next(line for line in bench.table(runs, 3).splitlines() if "| s2sam |" in line)
    assert row.split(" | ")[2:7] == ["3", "90.0", "0.8", "59.0", "+2.0 ± 2.5"]  # 1, 2, 3: deviation 1, t = 4.30

    del runs[bench.Run(SETTING, "s2sam", 0.8, 2).key]  # a row is of the seeds that both have, not lost
    row = next(line for line in bench.table(runs, 5).splitlines() if "| s2sam |" in line)
    assert row.split(" | ")[2:7] == ["2", "90.0", "0.8", "55.0", "+1.5 ± 6.4"]  # 1, 2: deviation 0.71, t = 12.7
