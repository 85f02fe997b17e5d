"""The same bundle however often the work was cut off, and nothing lost."""

import random
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.video.encode import stages as fit_module
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.encode.overfit import Recipe, load_checkpoint, overfit
from hf_efficient.video.encode.patch_store import PatchStore
from tests.video.bundles import QUICK, files, source_clip, started, three_scenes


def run_apart(source: Path, output: Path, settings: dict[str, Any]) -> None:
    """A fit in a process of its own, as the one in which the test trains has it."""
    torch.set_num_threads(THREADS)
    fit_video(source, output, **settings)


THREADS = torch.get_num_threads()
# a process that has trained must not fork: what the server forks has imported, and no more
APART = get_context("forkserver")
APART.set_forkserver_preload([__name__])
DELTA = {"method": "delta", "num_blocks": 2}
KINDS = [{"method": "jstdo"}, {"method": "stdo", "num_chunks": 2}, DELTA, {**DELTA, "scenes": 3, "lr_quality": 40}]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", KINDS, ids=["jstdo", "stdo", "delta", "scenes"])
def test_kills_at_random_moments_change_nothing(tmp_path: Path, settings: dict[str, Any], kills: int) -> None:
    source = three_scenes(tmp_path / "source.mp4") if "scenes" in settings else source_clip(tmp_path)
    chosen = {**QUICK, **settings, "steps": 60, "num_features": 8}
    rng, started = random.Random(0), time.perf_counter()
    reference = files(fit_video(source, tmp_path / "reference", **chosen).path)
    seconds = time.perf_counter() - started
    killed = 0
    while killed < kills:
        child = APART.Process(target=run_apart, args=(source, tmp_path / "bundle", chosen))
        child.start()
        child.join(rng.uniform(0, 0.35 * seconds))
        if child.is_alive():
            child.kill()
            killed += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL), "it failed by itself"
        if (tmp_path / "bundle").exists():  # it was done: start anew, until there were enough kills
            assert files(tmp_path / "bundle") == reference
            shutil.rmtree(tmp_path / "bundle")
    resumed = fit_video(source, tmp_path / "bundle", **chosen)
    assert files(resumed.path) == reference
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "reference", "source.mp4"]


def test_training_resumes_at_its_checkpoint(tmp_path: Path) -> None:
    fit = started(tmp_path)
    fit.make_stores()
    store, recipe = PatchStore(fit.work / "expert-0"), Recipe(steps=9, batch_size=4, checkpoint_every=4)

    class Stop(Exception):
        pass

    def stop_at(step: int) -> Any:
        counts = iter(range(100))

        def progress(done: int) -> None:
            if done and next(counts) == step:
                raise Stop

        return progress

    whole = overfit(fit.new_network(fit.plan.spec("expert-0"), 0), store, recipe, tmp_path / "whole.pt")
    with pytest.raises(Stop):
        overfit(fit.new_network(fit.plan.spec("expert-0"), 0), store, recipe, tmp_path / "cut.pt", stop_at(5))
    net = fit.new_network(fit.plan.spec("expert-0"), 0)
    assert load_checkpoint(tmp_path / "cut.pt", net) == 4
    done: list[int] = []
    resumed = overfit(net, store, recipe, tmp_path / "cut.pt", done.append)
    assert done == [4, 1, 1, 1, 1, 1]
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_there_is_not_lost(tmp_path: Path) -> None:
    source = source_clip(tmp_path)
    fit_video(source, tmp_path / "bundle", **QUICK)
    before = files(tmp_path / "bundle")
    with pytest.raises(FileExistsError, match="exists"):
        fit_video(source, tmp_path / "bundle", **QUICK)
    assert files(tmp_path / "bundle") == before
    fit_video(source, tmp_path / "bundle", **{**QUICK, "steps": 4}, overwrite=True)
    assert files(tmp_path / "bundle") != before


def test_unfinished_work_of_other_settings_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_clip(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "overfit", fail)
        with pytest.raises(KeyboardInterrupt):
            fit_video(source, tmp_path / "bundle", **QUICK)
    with pytest.raises(FileExistsError, match="steps=8 then, steps=6 now"):
        fit_video(source, tmp_path / "bundle", **{**QUICK, "steps": 6})
    assert fit_video(source, tmp_path / "bundle", **QUICK).sizes()


@pytest.mark.parametrize("there", [False, True])
def test_a_kill_at_the_very_end_is_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    source, unlink = source_clip(tmp_path), Path.unlink
    if there:  # an older bundle that is to be replaced
        fit_video(source, tmp_path / "bundle", **{**QUICK, "steps": 4})

    def fail(path: Path, **options: Any) -> None:
        if path.name == "lr.npy":
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(KeyboardInterrupt):
            fit_video(source, tmp_path / "bundle", **QUICK, overwrite=there)
    before = files(tmp_path / "bundle")
    assert (tmp_path / "bundle.partial" / "expert-0").exists()
    fit_video(source, tmp_path / "bundle", **QUICK)
    assert files(tmp_path / "bundle") == before
    assert not (tmp_path / "bundle.partial").exists()
