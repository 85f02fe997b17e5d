"""What is trained on what."""

from pathlib import Path

import numpy as np
import torch

from hf_efficient.video.encode.patch_store import PatchStore
from tests.video.bundles import started


def test_patches_are_the_video(tmp_path: Path) -> None:
    fit = started(tmp_path, method="stdo", num_chunks=2, halo=3, max_patches=10_000)
    fit.make_stores()
    pairs, g, per_frame = list(fit.pairs()), fit.geometry, fit.geometry.rows * fit.geometry.columns
    labels, _ = fit.plan.labels()
    for m in range(2):
        numbers, store = np.flatnonzero(labels == m), PatchStore(fit.work / f"expert-{m}")
        assert len(store) == len(numbers) > 0
        lr, hr = store.batch(np.arange(len(store)))
        for n, number in enumerate(numbers.tolist()):
            t, i, j = number // per_frame, number % per_frame // g.columns, number % g.columns
            y = min(i * g.patch_height, g.lr_height - hr.shape[2] // 2)
            x = min(j * g.patch_width, g.lr_width - hr.shape[3] // 2)
            torch.testing.assert_close(hr[n], pairs[t].hr[0, :, 2 * y :, 2 * x :][:, : hr.shape[2], : hr.shape[3]])
            rows = np.arange(y - 3, y + hr.shape[2] // 2 + 3).clip(0, g.lr_height - 1)  # beyond the frame: its border
            columns = np.arange(x - 3, x + hr.shape[3] // 2 + 3).clip(0, g.lr_width - 1)
            torch.testing.assert_close(lr[n], pairs[t].lr[0][:, rows][:, :, columns])


def test_every_patch_of_the_video_is_somebodys(tmp_path: Path) -> None:
    fit = started(tmp_path, method="stdo", num_chunks=3, max_patches=10**6)
    chosen = fit.plan.chosen_patches()
    experts = np.concatenate([v for k, v in chosen.items() if k != "general"])
    assert sorted(experts.tolist()) == list(range(fit.plan.errors.size))
    assert chosen["general"].tolist() == list(range(fit.plan.errors.size))
    assert sum(r.steps for r in fit.plan.recipes().values()) <= fit.settings.steps


def test_joint_training_leaves_the_easiest_out(tmp_path: Path) -> None:
    fit = started(tmp_path, max_patches=10**6)
    labels, k = fit.plan.labels()
    (numbers,) = fit.plan.chosen_patches().values()
    counts = np.bincount(labels[numbers], minlength=k) / np.bincount(labels, minlength=k)
    np.testing.assert_allclose(counts, [1, 2 / 3, 1 / 3, 0], atol=0.05)
    assert fit.plan.recipes()["expert-0"].steps == fit.settings.steps
