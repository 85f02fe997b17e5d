"""transformers: the undocumented names that are read or changed, as read in transformers 5.23.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainerCallback

#: "module:name" of what is read or changed.
READ = ("transformers.trainer:DEFAULT_CALLBACKS",)


def add_default_callback(callback: type[TrainerCallback]) -> None:
    """Add a callback to every Trainer that is made from now on; there is no registration for it.

    Undo it with `transformers.trainer.DEFAULT_CALLBACKS.remove(callback)`.
    """
    from transformers import trainer

    if callback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(callback)
