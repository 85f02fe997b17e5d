"""The field's protocol by lmms-eval, up to the datasets: what is run, what is read, and that rows are not run twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.representation import field_lmms
from hf_efficient.cli import build_parser, pruner_settings
from hf_efficient.representation.evaluation.questions import TINY_VLM


def test_rows_are_runs_of_the_command(tmp_path: Path) -> None:
    arguments = field_lmms.parser().parse_args(["--model", "m", "--methods", "itg", "--budgets", "64", "0.1"])
    rows = field_lmms.rows_of(arguments, "llava")
    assert list(rows) == ["all tokens", "itg, 64", "itg, 0.1"]
    line = field_lmms.command(arguments, rows["itg, 0.1"], tmp_path)
    given = build_parser().parse_args(line[3:])
    assert (given.model, given.tasks) == ("m", "gqa,scienceqa_img,textvqa_val,pope,mme")
    assert pruner_settings(given) == {"method": "itg", "budget": 0.1}
    assert pruner_settings(
        build_parser().parse_args(field_lmms.command(arguments, rows["all tokens"], tmp_path)[3:])
    ) == {"budget": 1.0}


def test_results_are_read_and_rows_are_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(line: list[str], **_: Any) -> Any:
        """As lmms-eval writes."""
        if "eval" not in line:
            return stock(line, **_)
        ran.append(line)
        folder = Path(line[line.index("--output") + 1]) / "m"
        folder.mkdir(parents=True)
        share = 0.5 if "itg" in line else 0.8
        results = {"pope": {"pope_f1_score,none": share}, "mme": {"mme_perception_score,none": 1000 * share}}
        (folder / "20260101_results.json").write_text(json.dumps({"results": results}))
        return None

    stock = subprocess.run
    monkeypatch.setattr(field_lmms.subprocess, "run", run)
    options = ["--model", str(TINY_VLM), "--methods", "itg", "--budgets", "18", "--tasks", "pope", "mme"]
    monkeypatch.setattr(sys, "argv", ["field_lmms", *options, "--output", str(tmp_path)])
    for _ in range(2):
        field_lmms.main()
    assert len(ran) == 2
    table = (tmp_path / "table.md").read_text()
    assert "| all tokens | 80.0 | 800.0 | 100.0% |" in table
    assert "| itg, 18 | 50.0 | 500.0 | 62.5% |" in table
