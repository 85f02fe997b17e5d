"""`hf-efficient plan`: the best plan under limits."""

import argparse
import sys
import tempfile

from hf_efficient.files.outputs import check_output

from .output import write_json
from .plan_models import loaded, rows_for, training_arguments


def run(arguments: argparse.Namespace) -> None:
    """Find it, print what was tried, write the plan into a folder.

    Raises:
        LimitError: no plan keeps the limits.
        ValueError: a limit, a method or the data cannot be read.
        OSError: the model cannot be loaded, or the folder not be written.
    """
    to_stdout = str(arguments.json) == "-"
    for output in (arguments.plot, None if to_stdout else arguments.json):
        if output is not None:
            check_output(output, "file")
    check_output(arguments.output, "folder")
    names = [name for name, _ in arguments.limit]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"limit: {twice[0]} is given more than once; expected one amount.")
    from hf_efficient import find_plan
    from hf_efficient.budget.plan.folder import check_free
    from hf_efficient.budget.planner.limits import OF_TRAINING, check_limits
    from hf_efficient.budget.planner.ready import INPUTS, METRICS, labelled

    check_limits(dict(arguments.limit), trained=True)
    check_free(arguments.output)
    model, processor, looks = loaded(arguments)
    rows = rows_for(arguments, looks)
    with tempfile.TemporaryDirectory() as unused:  # a Trainer makes a folder of checkpoints, though it writes none
        training = {}
        if set(names) & set(OF_TRAINING):
            step = rows[: arguments.batch_size]
            training = {"args": training_arguments(arguments, unused, max_steps=arguments.steps),
                        "train_batch": lambda processor: labelled(processor, step)}  # fmt: skip
        found = find_plan(
            model, processor, rows, METRICS[looks], dict(arguments.limit), methods=arguments.methods,
            inputs=INPUTS[looks], levers=arguments.levers,
            progress=lambda name: print(f"trying {name}", file=sys.stderr), **training,
        )  # fmt: skip
    found.plan.save_pretrained(arguments.output)
    if arguments.plot:
        found.plot(arguments.plot)
    if arguments.json:
        write_json(arguments.json, found.to_dict())
    if not to_stdout:
        print(found.to_markdown())
        then = "train" if training else "apply"
        print(
            f"\nThe plan is in {arguments.output}. Next: hf-efficient {then} {arguments.model} {arguments.output} NEW"
        )
