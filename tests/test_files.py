"""What `written_whole` promises to everything that saves."""

from pathlib import Path

import pytest

from hf_efficient.files import written_whole


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "weights.safetensors"
    with written_whole(target) as draft:
        draft.write_bytes(b"whole")
        assert draft.suffix == target.suffix
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "config.json"
    target.write_text("old")

    def fails() -> None:
        with written_whole(target) as draft:
            draft.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fails()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing yet"), written_whole(tmp_path / "a.json"):
        raise ValueError("nothing yet")
    assert not list(tmp_path.iterdir())


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    plain = tmp_path / "plain.json"
    plain.write_text("{}")
    with written_whole(tmp_path / "whole.json") as draft:
        draft.write_text("{}")
    assert (tmp_path / "whole.json").stat().st_mode == plain.stat().st_mode
