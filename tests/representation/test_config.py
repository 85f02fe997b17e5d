"""TokenPrunerConfig: what it accepts, what it refuses, and that files and command lines bring it back unchanged."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import HfArgumentParser

from hf_efficient.representation.config import CONFIG_NAME, TokenPrunerConfig
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("budget", "n", "kept"),
    [
        (64, 576, 64),
        (1, 576, 1),
        (1000, 576, 576),
        (1.0, 576, 576),
        (0.25, 576, 144),
        (0.1, 144, 14),  # 14.4
        (0.5, 5, 3),  # 2.5 rounds up, not to even
        (0.001, 144, 1),
        (0.25, 1, 1),
    ],
)
def test_tokens_to_keep(budget: int | float, n: int, kept: int) -> None:
    assert TokenPrunerConfig(budget=budget).tokens_to_keep(n) == kept


def test_no_unit_is_empty() -> None:
    with pytest.raises(ValueError, match="unit of 0 tokens"):
        TokenPrunerConfig().tokens_to_keep(0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("method", "idpruner", "'id_pruner', 'random'"),
        ("method", None, "method=None"),
        ("budget", 0, "keeps nothing"),
        ("budget", -3, "keeps nothing"),
        ("budget", 0.0, "not a share"),
        ("budget", 1.5, "not a share"),
        ("budget", 64.0, "Write budget=64"),
        ("budget", float("nan"), "not a share"),
        ("budget", float("inf"), "not a share"),
        ("budget", True, "is a bool"),
        ("budget", "64", "is a str"),
        ("budget", None, "is a NoneType"),
        ("importance", "attention", "'cls', 'received'"),
        ("importance_weight", 1.1, "in \\[0, 1\\]"),
        ("importance_weight", "high", "in \\[0, 1\\]"),
        ("coverage_mix", -0.1, "in \\[0, 1\\]"),
        ("coverage_mix", float("nan"), "in \\[0, 1\\]"),
        ("kernel", "dot", "'rbf', 'cosine'"),
        ("question_weight", True, "in \\[0, 1\\]"),
        ("min_group_share", 2, "in \\[0, 1\\]"),
        ("positions", "kept", "'compact', 'original'"),
    ],
)
def test_invalid_field_is_named_with_its_value_and_what_is_expected(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        TokenPrunerConfig(**{field: value})
    assert str(caught.value).startswith(f"{field}={value!r}")


@pytest.mark.parametrize("budget", [1, 1.0, 64, 0.25])
def test_folder_brings_back_every_field_and_its_type(tmp_path: Path, budget: int | float) -> None:
    config = TokenPrunerConfig(
        method="id_pruner",
        budget=budget,
        importance="norm",
        importance_weight=0.3,
        coverage_mix=0.0,
        kernel="rbf",
        question_weight=0.5,
        min_group_share=0.2,
        positions="original",
    )
    config.save_pretrained(tmp_path / "new" / "folder")
    back = TokenPrunerConfig.from_pretrained(tmp_path / "new" / "folder")
    assert back == config
    assert type(back.budget) is type(budget)
    assert os.listdir(tmp_path / "new" / "folder") == [CONFIG_NAME]


def test_file_is_plain_json_and_absent_fields_take_defaults(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_text('{"budget": 32}')
    assert TokenPrunerConfig.from_pretrained(tmp_path) == TokenPrunerConfig(budget=32)
    assert json.loads(TokenPrunerConfig(budget=32).to_json_string()) == TokenPrunerConfig(budget=32).to_dict()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"budget": 32, "keep": 3, "lam": 0.1}', r"\['keep', 'lam'\]"),
        ('{"budget": 0}', "keeps nothing"),
        ("{budget: 32}", "not valid JSON"),
        ("[1, 2]", "JSON list"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / CONFIG_NAME).write_text(content)
    with pytest.raises(ValueError, match=said):
        TokenPrunerConfig.from_pretrained(tmp_path)


def test_folder_without_the_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="without a token pruner"):
        TokenPrunerConfig.from_pretrained(tmp_path)


def test_save_to_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="needs a folder"):
        TokenPrunerConfig().save_pretrained(tmp_path / "taken")


def test_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TokenPrunerConfig(budget=8).save_pretrained(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        TokenPrunerConfig(budget=9).save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == [CONFIG_NAME]
    assert TokenPrunerConfig.from_pretrained(tmp_path).budget == 8


@pytest.mark.parametrize(("text", "budget"), [("64", 64), ("1", 1), ("1.0", 1.0), ("0.25", 0.25)])
def test_command_line_keeps_count_and_share_apart(text: str, budget: int | float) -> None:
    (config,) = HfArgumentParser(TokenPrunerConfig).parse_args_into_dataclasses(
        ["--budget", text, "--method", "id_pruner", "--importance-weight", "0.4"]
    )
    assert config == TokenPrunerConfig(budget=budget, method="id_pruner", importance_weight=0.4)
    assert type(config.budget) is type(budget)


@pytest.mark.parametrize(("text", "value"), [("4/255", 4 / 255), ("0.0", 0.0), ("1e-3", 1e-3)])
def test_a_difference_of_pixels_may_be_a_fraction(text: str, value: float) -> None:
    words = ["--merge_copies", text]
    (config,) = HfArgumentParser(TokenPrunerConfig).parse_args_into_dataclasses(words)
    assert config.merge_copies == value


@pytest.mark.parametrize("text", ["4/0", "4:255", "a/255", "4/255/2"])
def test_what_is_no_fraction_is_said(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(TokenPrunerConfig).parse_args_into_dataclasses(["--merge_copies", text])
    assert f"{text!r} is neither a number nor a fraction such as 4/255" in capsys.readouterr().err


NUMBERS: dict[str, Any] = {
    "importance_weight": 0.25, "coverage_mix": 0.75, "question_weight": 0.5, "min_group_share": 0.125,
    "merge_static": 0.5, "centroid_share": 0.5, "merge_copies": 0.0625, "importance_power": 2.0, "coverage_power": 3.0,
    "budget": 0.5, "llm_budget": 0.25,
}  # fmt: skip


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, Fraction])
@pytest.mark.parametrize("name", NUMBERS)
def test_real_numbers_of_other_libraries_are_floats(name: str, kind: Any, tmp_path: Path) -> None:
    method = {"importance_power": "itg", "centroid_share": "itg"}.get(name, "id_pruner")
    rest: dict[str, Any] = {"llm_layers": [1]} if name == "llm_budget" else {}
    config = TokenPrunerConfig(method, **{name: kind(NUMBERS[name])}, **rest)
    assert type(getattr(config, name)) is float
    assert config == TokenPrunerConfig(method, **{name: NUMBERS[name]}, **rest)
    config.save_pretrained(tmp_path)
    assert TokenPrunerConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32(1.5), np.bool_(True), np.complex64(0.5)])
def test_numbers_out_of_range_and_what_is_no_real_number_stay_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"importance_weight=.* expected a number in"):
        TokenPrunerConfig(importance_weight=value)
    budgets: list[Any] = [np.float32(1.5), np.int64(0), np.bool_(True)]
    for budget in budgets:
        with pytest.raises(ValueError, match="budget="):
            TokenPrunerConfig(budget=budget)
    count: Any = np.int64(7)
    assert TokenPrunerConfig(budget=count).tokens_to_keep(9) == 7


def test_command_line_refuses_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(TokenPrunerConfig).parse_args_into_dataclasses(["--budget", "all"])
    assert "--budget: invalid Budget value: 'all'" in capsys.readouterr().err


def test_argument_parser_reads_the_saved_file(tmp_path: Path) -> None:
    TokenPrunerConfig(budget=1.0, kernel="cosine").save_pretrained(tmp_path)
    (config,) = HfArgumentParser(TokenPrunerConfig).parse_json_file(tmp_path / CONFIG_NAME)
    assert config == TokenPrunerConfig(budget=1.0, kernel="cosine")
    assert type(config.budget) is float


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "dart", "lloyd_steps": 5}, "lloyd_steps=5 is not read by method='dart', only by 'itg'"),
        ({"lloyd_steps": 5}, "lloyd_steps=5 is not read by method='id_pruner', only by 'itg'"),
        (
            {"method": "divprune", "question_weight": 0.5},
            "question_weight=0.5 is not read by method='divprune', only by",
        ),
        (
            {"method": "scope", "kernel": "rbf"},
            "kernel='rbf' is not read by method='scope', only by 'id_pruner', 'itg'",
        ),
        (
            {"method": "itg", "importance_weight": 0.5},
            "importance_weight=0.5 is read only with initial_centers='coverage'",
        ),
        ({"method": "itg", "kernel": "rbf"}, "kernel='rbf' is read only with initial_centers='coverage'"),
        (
            {"method": "itg", "coverage_mix": 0.1},
            "coverage_mix=0.1 is read only with initial_centers='coverage' or min_group_share",
        ),
        (
            {"method": "scope", "coverage_mix": 0.1},
            "coverage_mix=0.1 is read only with min_group_share above 0, method=",
        ),
        (
            {"method": "prumerge", "merge_static": 0.5},
            "merge_static=0.5 is read only with other methods than 'prumerge'",
        ),
        ({"llm_budget": 3}, "llm_budget=3 is read only with llm_layers that are named"),
        ({"llm_choice": "random"}, "llm_choice='random' is read only with llm_layers that are named"),
    ],
)
def test_a_setting_that_will_not_be_read_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        TokenPrunerConfig(**settings)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):  # of a file
        TokenPrunerConfig.from_dict(settings)


def test_what_belongs_to_a_method_stays_behind_when_it_is_changed() -> None:
    config = TokenPrunerConfig(method="itg", budget=9, lloyd_steps=5, question_weight=0.5, importance="norm")
    assert config.with_method("scope") == TokenPrunerConfig(
        method="scope", budget=9, question_weight=0.5, importance="norm"
    )
    assert config.with_method("dart", budget=3) == TokenPrunerConfig(method="dart", budget=3, importance="norm")
    assert config.with_method("itg") == config
    with pytest.raises(ValueError, match="lloyd_steps=2 is not read by method='dart'"):
        config.with_method("dart", lloyd_steps=2)


def test_a_config_is_made_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from hf_efficient import TokenPrunerConfig as T; T('scope', budget=3)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_table_of_methods_is_that_of_the_functions() -> None:
    from hf_efficient.methods import REPRESENTATION

    assert all(callable(row.implementation) for row in REPRESENTATION.methods)
    for setting in {name for row in REPRESENTATION.methods for name in row.reads}:
        assert setting in TokenPrunerConfig.__dataclass_fields__
