"""What is replaced while it is read is never mixed with what was read of it before."""

from pathlib import Path

import pytest

from hf_efficient.video.encode import stages as fit_module
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.manifest import BundleError
from hf_efficient.video.files.reader import MediaError
from hf_efficient.video.play.pipeline_stdo import STDOPipeline
from hf_efficient.video.play.player import Player
from tests.video.bundles import QUICK, quick_bundle, source_clip
from tests.video.clips import make_clip, moving_frames


@pytest.mark.parametrize("stage", ["score", "train"])
def test_a_source_that_is_replaced_on_the_way_makes_no_bundle(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = source_clip(tmp_path), make_clip(tmp_path / "other.mp4", moving_frames(12, 96, 80, seed=3))
    stock = getattr(fit_module.Fit, stage)

    def replaced(self: fit_module.Fit) -> None:
        other.replace(source)
        stock(self)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Fit, stage, replaced)
        with pytest.raises(MediaError, match="was changed while it was fitted"):
            fit_video(source, tmp_path / "bundle", **QUICK)
    assert not (tmp_path / "bundle").exists()
    assert fit_video(source, tmp_path / "bundle", **QUICK).sizes()


def test_a_bundle_replaced_under_a_player_is_not_mixed(tmp_path: Path) -> None:
    bundle, other = (
        quick_bundle(tmp_path, steps=2),
        make_clip(tmp_path / "other.mp4", moving_frames(12, 96, 80, seed=3)),
    )
    player, pipe = Player(bundle), STDOPipeline.from_pretrained(bundle.path)
    played = iter(player.frames())
    frames = [next(played).rgb]
    reference = [frame.rgb for frame in player.frames()]
    pipe.save_pretrained(bundle.path)  # other files, which hold the same
    assert [(frame.rgb == r).all() for frame, r in zip(player.frames(), reference, strict=True)] == [True] * 12
    fit_video(other, bundle.path, overwrite=True, **QUICK)
    for act in (lambda: list(player.frames()), lambda: Player(bundle), lambda: pipe(output_path=tmp_path / "a.mp4")):
        with pytest.raises(BundleError, match="was replaced while it was read"):
            act()
    assert not (tmp_path / "a.mp4").exists()
    frames += [frame.rgb for frame in played]  # what was begun is played to its end
    assert all((frame == r).all() for frame, r in zip(frames, reference, strict=True))
