"""The arguments: parsed beside the Trainer's, checked, scheduled."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    HfArgumentParser,
    TrainingArguments,
)

from hf_efficient import SAMArguments


def test_arguments_parse_beside_training_arguments(tmp_path: Path) -> None:
    line = f"--output_dir {tmp_path} --learning_rate 1e-3 --method zosam --rho 0.1 --num_queries 2 --guided".split()
    training, sam = HfArgumentParser((TrainingArguments, SAMArguments)).parse_args_into_dataclasses(line)
    assert (training.learning_rate, sam) == (1e-3, SAMArguments("zosam", rho=0.1, num_queries=2, guided=True))
    names = [{f.name for f in dataclasses.fields(cls)} for cls in (TrainingArguments, SAMArguments)]
    assert not names[0] & names[1]
    assert SAMArguments.from_dict(json.loads(sam.to_json_string())) == sam
    with pytest.raises(ValueError, match=r"Unknown \['rhoo'\]"):
        SAMArguments.from_dict({"rhoo": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "samm"), ("rho", -0.1), ("rho", float("nan")), ("rho_schedule", "step"), ("num_queries", 0),
     ("delta", 0.0), ("probe_fraction", 0.0), ("probe_fraction", 1.5), ("reuse_interval", 0),
     ("batch_norm_pass", "third"), ("perturb", "lora"),
     ("diagnostics_steps", -1), ("direction_seed", -1)],
)  # fmt: skip
def test_arguments_are_checked(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        SAMArguments(**{field: value})


def test_rho_schedules() -> None:
    at = lambda name, step: SAMArguments(rho=0.4, rho_schedule=name).rho_at(step, 100)
    assert [at("constant", t) for t in (0, 99)] == [0.4, 0.4]
    assert [at("inverse_sqrt", t) for t in (0, 3)] == [0.4, 0.2]
    assert [at("linear", t) for t in (0, 50, 100)] == [0.4, 0.2, 0.0]
    assert at("cosine", 50) == pytest.approx(0.2)


OTHERS: dict[str, Any] = {
    "num_queries": 9, "delta": 0.1, "probe_fraction": 0.5, "probe_dropout": False, "guided": True, "direction_seed": 1,
    "reuse_interval": 2, "reuse_weight": 0.1, "batch_norm_pass": "both", "perturb": "merged",
}  # fmt: skip
READ: dict[str, set[str]] = {
    "sam": {"batch_norm_pass", "perturb"},
    "asam": {"batch_norm_pass"},
    "s2sam": {"perturb"},
    "zosam": {"num_queries", "delta", "probe_fraction", "probe_dropout", "guided", "direction_seed"},
    "looksam": {"reuse_interval", "reuse_weight", "batch_norm_pass"},
    "msam": set(),
}


@pytest.mark.parametrize("method", READ)
def test_settings_that_a_method_does_not_read_are_refused(method: str) -> None:
    SAMArguments(
        method, rho=0.1, rho_schedule="linear", adaptive=True, perturb_pruned=True, upcast=True, diagnostics_steps=1
    )
    for setting, value in OTHERS.items():
        if setting in READ[method]:
            SAMArguments(method, **{setting: value})
            continue
        readers = [other for other, read in READ.items() if setting in read]
        with pytest.raises(ValueError, match=f"{setting}={value!r} is not read by method='{method}', only by") as said:
            SAMArguments(method, **{setting: value})
        assert all(repr(reader) in str(said.value) for reader in readers)
    SAMArguments(**OTHERS)  # the trainer's method is not known yet


def test_merged_weights_have_no_size_to_measure_by() -> None:
    with pytest.raises(ValueError, match="perturb='merged' is read only with adaptive=False"):
        SAMArguments("sam", adaptive=True, perturb="merged")


def test_guided_directions_have_no_step_of_their_own() -> None:
    with pytest.raises(ValueError, match=r"delta=0\.1 is read only with guided=False"):
        SAMArguments("zosam", guided=True, delta=0.1)


def test_what_is_reused_never_has_no_weight() -> None:
    assert SAMArguments("looksam", reuse_interval=1).reuse_weight == 0.7
    with pytest.raises(ValueError, match=r"reuse_weight=0\.3 is read only with reuse_interval above 1"):
        SAMArguments("looksam", reuse_interval=1, reuse_weight=0.3)
