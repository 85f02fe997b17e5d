"""What the benchmark of a step's time shows where nothing of a kind was measured."""

from pathlib import Path

from benchmarks.optimization import sam_step


def test_without_steps_of_a_trainer_there_are_no_bars(tmp_path: Path) -> None:
    path = tmp_path / "ratios.png"
    sam_step.plot({"trainer": {}, "loop": {}}, path)
    assert not path.exists()
    one = {"seconds": 3.0, "ratio": 1.0, "batch": 2}
    sam_step.plot({"trainer": {"ViT-S": {"methods": {"plain": one}}}, "loop": {}}, path)
    assert path.exists()
