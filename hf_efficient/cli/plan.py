"""`hf-efficient plan`: the best plan under limits."""

import argparse
import sys
import tempfile

from hf_efficient.files.outputs import check_output

from .model_options import check_place
from .output import Content, check_plot
from .plan_models import loaded, rows_for, training_arguments


def run(arguments: argparse.Namespace) -> Content:
    """Find it, print what was tried, write the plan into a folder.

    Raises:
        LimitError: no plan keeps the limits.
        ValueError: a limit, a method or the data cannot be read.
        OSError: the model cannot be loaded, or the folder not be written.
    """
    check_place(arguments)
    check_plot(arguments.plot)
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
            inputs=INPUTS[looks], levers=arguments.levers, prune=arguments.prune,
            progress=lambda name: print(f"trying {name}", file=sys.stderr), **training,
        )  # fmt: skip
    found.plan.save_pretrained(arguments.output)
    if arguments.plot:
        found.plot(arguments.plot)
    print(found.to_markdown())
    then = "train" if training else "apply"
    print(f"\nThe plan is in {arguments.output}. Next: hf-efficient {then} {arguments.model} {arguments.output} NEW")
    return found.to_dict() | {"output": arguments.output}
