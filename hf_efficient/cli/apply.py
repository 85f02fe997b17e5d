"""`hf-efficient apply`: a plan put on a model."""

import argparse

from hf_efficient.files.outputs import check_output

from .model_options import check_place
from .output import Content
from .plan_models import batches_for, loaded
from .push import push


def run(arguments: argparse.Namespace) -> Content:
    """Apply a plan and save model, processor and plan into one folder.

    Raises:
        ValueError: the plan cannot be put on the model.
        OSError: one of them cannot be read, or the folder not be written.
    """
    check_place(arguments)
    check_output(arguments.output, "folder")
    from hf_efficient import EfficiencyPlan
    from hf_efficient.budget.plan.folder import check_free

    check_free(arguments.output)
    plan = EfficiencyPlan.from_pretrained(arguments.plan)
    model, processor, looks = loaded(arguments, plan)
    model, processor = plan.apply(model, processor, batches_for(plan, arguments, model, processor, looks))
    plan.save_pretrained(arguments.output, model, processor)
    print(f"Saved to {arguments.output}.")
    uploaded = push(arguments.output, arguments)
    print(
        f"    from hf_efficient import EfficiencyPlan\n    model, processor = EfficiencyPlan.load("
        f"{str(arguments.output)!r})"
    )
    return {"output": arguments.output, "plan": plan.to_dict(), "uploaded": uploaded}
