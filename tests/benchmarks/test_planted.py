"""The planted problem: what is planted, what a mask that never moves finds of it by chance, and its table."""

import pytest

from benchmarks.sparsity.planted import PLANTED, SparseTeacher, recover, table


@pytest.mark.parametrize(("planted", "share"), [("5 % of the weights", 0.05), ("1 of each 4", 0.25)])
def test_a_static_mask_finds_its_own_share(planted: str, share: float) -> None:
    teacher = SparseTeacher(0, pattern=PLANTED[planted])
    assert teacher.k == share * teacher.weight.numel() == teacher.weight.count_nonzero()
    found = [recover("static", seed, steps=1, pattern=PLANTED[planted]) for seed in range(20)]
    assert sum(found) / 20 == pytest.approx(share, abs=0.02)


def test_the_table_has_mean_and_range_in_per_cent() -> None:
    runs = {f"5 % of the weights|bidst|{seed}": share for seed, share in enumerate((0.97, 0.98, 1.0))}
    assert "| bidst | 98.3 (97 to 100) |  |" in table(runs)
