"""TRL: the private names that sharpness-aware training asks for, as read in 1.16.0."""

from __future__ import annotations

import copy
import sys
from typing import Any

#: "module:name" of what is read.
READ = ("trl.trainer.grpo_trainer:unwrap_model_for_generation",)
#: "module:name" -> words in its source, where a name exists on instances alone.
IN_SOURCE = {
    "trl:SFTTrainer": ("self._metrics", "self._total_train_tokens"),
    "trl:GRPOTrainer": ("self._buffered_inputs",),
}
_COUNTERS = ("_metrics", "_total_train_tokens")


def generates_in_training_step(trainer: object) -> bool:
    """Whether a Trainer generates text inside its training step, as TRL's GRPO, online DPO and GKD do.

    No public name says so: they keep `_buffered_inputs`, or their modules import `unwrap_model_for_generation`.
    """
    modules = [sys.modules.get(c.__module__) for c in type(trainer).__mro__]
    return hasattr(trainer, "_buffered_inputs") or any(hasattr(m, "unwrap_model_for_generation") for m in modules)


def counters(trainer: object) -> dict[str, Any]:
    """A copy of what TRL's Trainers count inside `compute_loss`: averages of metrics, tokens seen."""
    return {name: copy.deepcopy(getattr(trainer, name)) for name in _COUNTERS if hasattr(trainer, name)}


def set_counters(trainer: object, saved: dict[str, Any]) -> None:
    """Give a Trainer its counters back, as `counters` read them."""
    for name, value in saved.items():
        setattr(trainer, name, value)
