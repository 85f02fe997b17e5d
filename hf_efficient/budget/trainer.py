"""The Trainer under a plan: fewer visual tokens, sparse weights and flat minima in one training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from hf_efficient.extras import extra
from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.optimization.training.trainer import SAMTrainerMixin

from .plan import file as plan_file
from .plan.card import add_section
from .plan.efficiency_plan import EfficiencyPlan
from .plan.parts import PARTS

with extra("training"):
    from transformers import Trainer


class EfficientTrainer(SAMTrainerMixin, Trainer):
    """`Trainer` of a model under a plan: `EfficientTrainer(model, args, plan=plan, train_dataset=data, ...)`.

    The pruner is active in every pass, the sparse weights or the adapter train and exchange their masks, and the steps
    are those of the plan's sharpness-aware method; without one they are plain. Checkpoints hold the plan and resume bit
    for bit. `trainer.model` is the trained model, for `plan.save_pretrained(folder, trainer.model, processor)`.

    Args:
        model: stock, or as `plan.apply` returned it; loaded with the plan's precision if it has one.
        args: `TrainingArguments`.
        plan: an `EfficiencyPlan`, its values, or a folder or Hub id it was saved to.
        kwargs: further arguments of `Trainer`, by name. `processing_class` is the processor, which a plan with a pruner
            changes in place, so that prompts made with it have as many placeholders as tokens are kept.

    Raises:
        ValueError: no model, `sam_args` beside the plan's, or as `EfficiencyPlan.apply`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: Any = None,
        *,
        plan: EfficiencyPlan | dict[str, Any] | str | os.PathLike[str],
        **kwargs: Any,
    ) -> None:
        if model is None:
            raise ValueError("EfficientTrainer needs a model; model_init is not supported.")
        if kwargs.get("sam_args") is not None:
            raise ValueError("sam_args is not read beside a plan; put it into the plan: EfficiencyPlan(sam=...).")
        self.plan = EfficiencyPlan.of(plan)
        model, _ = self.plan.apply(model, kwargs.get("processing_class"))
        kwargs["sam_args"] = SAMArguments(rho=0.0) if self.plan.sam is None else self.plan.sam  # 0: the plain Trainer
        super().__init__(model, args, **kwargs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, plan={self.plan!r})"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's own, with the plan beside the weights."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            plan_file.write(folder, self.plan.to_dict(), plan_file.files_of(folder))

    def load_weights(self, checkpoint: str) -> None:
        """The weights of a checkpoint of the same plan, without a step."""
        self._load_from_checkpoint(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._check_plan(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _check_plan(self, checkpoint: str) -> None:
        """Refuse a checkpoint of another plan; of other SAM arguments the Trainer warns."""
        if not Path(checkpoint, plan_file.NAME).exists():
            return
        before = EfficiencyPlan.from_pretrained(checkpoint)
        changed = [name for name in PARTS if name != "sam" and getattr(before, name) != getattr(self.plan, name)]
        if changed:
            raise ValueError(
                f"{checkpoint} was trained under another plan: {', '.join(changed)} differ. Resume with "
                f"plan=EfficiencyPlan.from_pretrained({checkpoint!r}), or start anew from its weights."
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's own card, with a section on the plan."""
        above: Any = super() if self.plan.sam is not None else super(SAMTrainerMixin, self)
        above.create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir) / "README.md"
        if self.is_world_process_zero() and path.exists():
            add_section(path, self.plan)
