"""`hf-efficient train`: a plan carried out."""

import argparse
from pathlib import Path

from hf_efficient.files.outputs import check_output

from .model_options import check_place
from .output import Content
from .plan_models import batches_for, loaded, rows_for, training_arguments
from .push import push


def run(arguments: argparse.Namespace) -> Content:
    """Train a model under a plan, from its last checkpoint where there is one, and save both.

    Raises:
        ValueError: the plan cannot be put on the model.
        OSError: model, plan or data cannot be read, or the folders not be written.
    """
    check_place(arguments)
    check_output(arguments.output, "folder")
    from hf_efficient import EfficiencyPlan, train_plan
    from hf_efficient.budget.planner.ready import labelled

    plan = EfficiencyPlan.from_pretrained(arguments.plan)
    model, processor, looks = loaded(arguments, plan)
    rows = rows_for(arguments, looks)
    checkpoints = arguments.checkpoints or Path(f"{arguments.output}_checkpoints")
    settings = training_arguments(
        arguments, str(checkpoints), max_steps=arguments.steps, save_steps=arguments.save_steps, seed=arguments.seed,
        learning_rate=arguments.learning_rate, save_total_limit=2, logging_steps=10,
    )  # fmt: skip
    trainer = train_plan(
        plan, model, settings, arguments.output, processor, batches_for(plan, arguments, model, processor, looks),
        train_dataset=list(rows), data_collator=lambda some: labelled(processor, some),
    )  # fmt: skip
    print(f"Saved to {arguments.output}; checkpoints are in {checkpoints}.")
    return {
        "output": arguments.output, "checkpoints": checkpoints, "plan": plan.to_dict(),
        "steps": trainer.state.global_step, "log": trainer.state.log_history,
        "uploaded": push(arguments.output, arguments),
    }  # fmt: skip
