"""Scores by a network, and what networks start from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.patches import round8
from tests.video.bundles import QUICK, files, on_whole_frames, quick_bundle, source_clip, started


def test_scores_by_a_network_are_its_errors(tmp_path: Path) -> None:
    """Against its enlargement of each whole frame, cut and compared by hand."""
    general = quick_bundle(tmp_path / "general", method="single", steps=30, num_features=6)
    fit = started(tmp_path, scorer=str(general.path))
    errors, g = np.load(fit.work / "errors.npy"), fit.geometry
    from hf_efficient.video.play.player import Player

    net = Player(general).experts[0]
    pairs = list(fit.pairs())
    starts, height, width = g.windows()
    for t in (0, len(pairs) - 1):
        output = round8(on_whole_frames(net, pairs[t].lr))[0] / 255
        for n, (top, left) in enumerate(2 * starts):
            y, x = slice(top, top + 2 * height), slice(left, left + 2 * width)
            expected = (output[:, y, x] - pairs[t].hr[0, :, y, x]).square().mean()
            assert errors[t, n] == pytest.approx(float(expected), rel=1e-3)
    assert not np.allclose(errors, np.load(started(tmp_path / "b").work / "errors.npy"))


def test_a_bundle_does_not_tell_where_its_scorer_lay(tmp_path: Path) -> None:
    general = quick_bundle(tmp_path / "general", method="single")
    source = source_clip(tmp_path)
    bundle = fit_video(source, tmp_path / "b", scorer=str(general.path), **QUICK)
    assert len(bundle.manifest["fit"]["scorer"]) == 64
    assert not any(str(tmp_path).encode() in data for data in files(bundle.path).values())
    assert files(fit_video(source, tmp_path / "c", scorer=str(general.model), **QUICK).path) == files(bundle.path)


def test_scorers_that_cannot_score_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither 'bicubic' nor the folder"):
        quick_bundle(tmp_path / "a", scorer=str(tmp_path))
    two = quick_bundle(tmp_path / "two", method="stdo", num_chunks=2)
    with pytest.raises(ValueError, match="holds 2 networks"):
        quick_bundle(tmp_path / "b", scorer=str(two.path))
    one = quick_bundle(tmp_path / "one")
    with pytest.raises(ValueError, match="for scale 2; scoring needs one for scale 3"):
        quick_bundle(tmp_path / "c", scorer=str(one.path), scale=3)


STDO: dict[str, Any] = {**QUICK, "method": "stdo", "num_chunks": 3}


@pytest.mark.parametrize("start", ["general", "previous", "none"])
def test_what_networks_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """The weights that training begins with, against those that were trained before."""
    from hf_efficient.video.encode import stages as fit_module

    before: dict[str, dict[str, torch.Tensor]] = {}
    after: dict[str, dict[str, torch.Tensor]] = {}
    overfit = fit_module.overfit

    def spy(net: Any, store: Any, recipe: Any, checkpoint: Path, *rest: Any) -> Any:
        before[checkpoint.stem] = {k: v.clone() for k, v in net.state_dict().items()}
        overfit(net, store, recipe, checkpoint, *rest)
        after[checkpoint.stem] = {k: v.clone() for k, v in net.state_dict().items()}

    monkeypatch.setattr(fit_module, "overfit", spy)
    fit_video(source_clip(tmp_path), tmp_path / "bundle", warm_start=start, **STDO)
    parents = {
        "general": {"expert-0": "general", "expert-1": "general", "expert-2": "general"},
        "previous": {"expert-1": "expert-0", "expert-2": "expert-1"},
        "none": {},
    }[start]
    assert ("general" in before) == (start == "general")
    for name, weights in before.items():
        if name in parents:
            assert all(torch.equal(v, after[parents[name]][k]) for k, v in weights.items())
        else:
            assert not any(all(torch.equal(v, o[k]) for k, v in weights.items()) for o in after.values())
    steps = [e["steps"] for e in Bundle.open(tmp_path / "bundle").manifest["experts"]]
    assert steps == ([1, 1, 1] if start == "general" else [2, 2, 2])
