"""Models, rows and files of the commands that work with plans."""

from __future__ import annotations

import argparse
from typing import Any

from hf_efficient.files import is_local
from hf_efficient.sparsity.storage.stored import load_stored

from .model_options import of_the_hub, of_the_model
from .report import sees


def loaded(arguments: argparse.Namespace, plan: Any = None) -> tuple[Any, Any, bool]:
    """The stock model with the precision of a plan, its processor or tokenizer, and whether it sees.

    Raises:
        ValueError: the model neither sees nor writes text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    from hf_efficient.budget.plan.precision import quantization_config

    is_local(arguments.model)
    looks = sees(arguments.model, **of_the_hub(arguments))
    kwargs = of_the_model(arguments)
    precision = None if plan is None else plan.precision
    more = {} if precision is None else {"quantization_config": quantization_config(precision)}
    made = AutoModelForImageTextToText if looks else AutoModelForCausalLM
    processor = (AutoProcessor if looks else AutoTokenizer).from_pretrained(
        arguments.model, revision=arguments.revision
    )
    if not looks and processor.pad_token is None:
        processor.pad_token = processor.eos_token
    model = load_stored(made, arguments.model, **kwargs, **more)
    return (model if precision is not None else model.to(arguments.device)), processor, looks


def rows_for(arguments: argparse.Namespace, looks: bool) -> Any:
    """Rows of the data that are given, or of the shipped images.

    Raises:
        ValueError: a model of text has no texts.
    """
    from hf_efficient.budget.planner.ready import rows_of_pictures, rows_of_text

    if looks:
        return rows_of_pictures(arguments.data, arguments.rows)
    if arguments.data is None:
        raise ValueError("data=None: the model reads text alone; name a file with a text a line.")
    return rows_of_text(arguments.data, arguments.rows)


def batches_for(plan: Any, arguments: argparse.Namespace, model: Any, processor: Any, looks: bool) -> Any:
    """Calibration data, where the plan prunes weights."""
    from hf_efficient.budget.planner.ready import INPUTS
    from hf_efficient.budget.planner.rows import calibration_batches
    from hf_efficient.representation.evaluation.questions import on_device

    if plan.pruning is None:
        return None
    rows = rows_for(arguments, looks)
    return calibration_batches(rows, lambda some: on_device(model, INPUTS[looks](processor, some)))


def training_arguments(arguments: argparse.Namespace, folder: str, **more: Any) -> Any:
    """The `TrainingArguments` of the options.

    Args:
        arguments: with `batch_size` and `device`.
        folder: of checkpoints.
        more: other settings.
    """
    from transformers import TrainingArguments

    return TrainingArguments(
        folder, per_device_train_batch_size=arguments.batch_size, remove_unused_columns=False, report_to="none",
        use_cpu=arguments.device == "cpu", **more,
    )  # fmt: skip
