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
     ("batch_norm_pass", "third"),
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
