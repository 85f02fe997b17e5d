"""JSTDO's lead over several seeds: paired, clip by clip, and over the clips."""

import json
from pathlib import Path

import pytest

from benchmarks.video import stdo_seeds


def test_leads_are_paired_by_seed_and_the_last_row_is_of_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for seed, ours in enumerate((31.0, 33.0, 32.0)):  # seeds differ by more than methods
        rows = {f"{clip} / 4 / wdsr / {m} / steps": {"psnr": ours + bonus - 0.01 * seed * (m == "EMT")}
                for clip, lead in (("a", 0.1), ("b", 0.3))
                for m, bonus in (("JSTDO", lead), ("EMT", 0.0))}  # fmt: skip
        rows["a / 4 / wdsr / STDO, k = 2 / steps"] = {"psnr": 1.0}
        if seed:  # not of every seed: left out
            del rows["a / 4 / wdsr / STDO, k = 2 / steps"]
        folders.append(tmp_path / str(seed))
        folders[-1].mkdir()
        (folders[-1] / "results.json").write_text(json.dumps({"rows": rows}))
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["x", "--folders", *map(str, folders), "--output", str(out)])
    stdo_seeds.main()
    lines = (out / "table.md").read_text().splitlines()
    # leads 0.10, 0.11, 0.12: mean 0.11, deviation 0.01, t = 4.303 on 2 degrees
    assert lines[2:] == [
        "| clip | minus EMT |", "|---|---|", "| a | **+0.11 ± 0.02** |", "| b | **+0.31 ± 0.02** |",
        "| mean of the clips | +0.21 ± 1.27 |",  # 0.11, 0.31: deviation 0.1414, t = 12.71 on 1
    ]  # fmt: skip
    assert (out / "leads.png").stat().st_size > 3000
