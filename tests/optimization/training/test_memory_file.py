"""Checkpoints say which method and settings they are of."""

from pathlib import Path

import pytest

from hf_efficient import SAMArguments
from hf_efficient.optimization.engine.variant import new_variant
from tests.optimization.training.trainers import METHODS, build, trained


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    import transformers.utils.logging as logging

    logging.enable_propagation()
    return caplog


@pytest.mark.parametrize(("before", "after"), [("s2sam", "looksam"), ("guided", "s2sam"), ("s2sam", "sam")])
def test_resuming_with_another_method_says_what_is_dropped(
    before: str, after: str, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, METHODS[before], max_steps=2, save_strategy="steps", save_steps=2)
    resumed = build(tmp_path, METHODS[after], max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    names = [METHODS[name].method for name in (before, after)]
    assert said.text.count(f"method={names[0]!r}, now {names[1]!r}") == 1
    dropped = sorted(
        set(new_variant(METHODS[before], lambda: None).memory) - set(new_variant(METHODS[after], lambda: None).memory)
    )
    assert (f"What it remembered ({', '.join(dropped)}) is dropped" in said.text) == bool(dropped)


def test_resuming_with_other_settings_is_said_and_with_the_same_is_not(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, METHODS["s2sam"], max_steps=2, save_strategy="steps", save_steps=2)
    build(tmp_path, METHODS["s2sam"], max_steps=4).train(resume_from_checkpoint=True)
    build(tmp_path, SAMArguments("s2sam", diagnostics_steps=1), max_steps=4).train(resume_from_checkpoint=True)
    assert "checkpoint" not in said.text
    other = SAMArguments("s2sam", rho=0.2, adaptive=True)
    build(tmp_path, other, max_steps=4).train(resume_from_checkpoint=True)
    assert said.text.count("rho=0.05, now 0.2; adaptive=False, now True") == 1


def test_a_remembered_direction_of_another_shape_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trained(tmp_path, METHODS["s2sam"], max_steps=2, save_strategy="steps", save_steps=2)
    path = tmp_path / "checkpoint-2" / "sam_memory.safetensors"
    whole = load_file(path)
    name = next(iter(whole))
    for wrong in (whole[name][:1].clone(), whole[name].int()):
        save_file({**whole, name: wrong}, path)
        with pytest.raises(ValueError, match=r"sam_memory\.safetensors.*expected"):
            build(tmp_path, METHODS["s2sam"], max_steps=4).train(resume_from_checkpoint=True)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"sam_memory\.safetensors"):
        build(tmp_path, METHODS["s2sam"], max_steps=4).train(resume_from_checkpoint=True)
