"""Every format that is read, mutated at random: a clear error or a result, in bounded time and memory, and no crash.

A row of FORMATS says how a small sample is made, which of its files are mutated, and how it is read and used.
"""

from pathlib import Path

import pytest

from tests.fuzzed_formats import FORMATS
from tests.fuzzed_states import STATES
from tests.fuzzing import Report, fuzzed_files, fuzzed_states

FEW, MANY = 60, 2000


def checked(report: Report, name: str, mutants: int, least: float = 0.3) -> None:
    print(f"\n{name}: {mutants} mutants: {report}")
    assert not report.faults, "\n".join(report.faults[:20])
    assert report.refused + report.equal + report.different == mutants
    assert report.refused >= least * mutants
    assert report.grown < 512


@pytest.mark.parametrize("mutants", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_refused_or_harmless(name: str, mutants: int, tmp_path: Path) -> None:
    row, folder = FORMATS[name], tmp_path / "sample"
    load = row.make(folder)
    sign = None if row.sign is None else row.sign(folder)
    report = fuzzed_files(folder, row.names, load, mutants, 0, sign)
    checked(report, name, mutants)
    assert not (row.exact and report.different)


@pytest.mark.parametrize("mutants", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", STATES)
def test_mutated_states_are_refused_or_harmless(name: str, mutants: int) -> None:
    make, named = STATES[name]
    state, load = make()
    checked(fuzzed_states(state, load, named, mutants, 0), name, mutants)
