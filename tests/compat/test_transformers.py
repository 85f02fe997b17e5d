"""What is used of transformers' undocumented names is there, and can be undone."""

from pathlib import Path

import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import DEFAULT_CALLBACKS

from hf_efficient.compat.transformers import READ, add_default_callback
from tests.compat.private_names import changes
from tests.sparsity.models import llama


def test_undocumented_names_are_as_they_were_read() -> None:
    found = changes(READ, {})
    assert not found, f"transformers {transformers.__version__}:\n" + "\n".join(found)


def test_a_default_callback_is_added_once_and_can_be_removed(tmp_path: Path) -> None:
    class Ours(TrainerCallback):
        pass

    def callbacks() -> int:
        trainer = Trainer(llama(), TrainingArguments(output_dir=str(tmp_path), report_to="none"))
        return sum(isinstance(callback, Ours) for callback in trainer.callback_handler.callbacks)

    add_default_callback(Ours)
    add_default_callback(Ours)
    assert callbacks() == 1
    DEFAULT_CALLBACKS.remove(Ours)
    assert callbacks() == 0
