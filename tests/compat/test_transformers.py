"""What is changed in transformers can be undone."""

from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_efficient.compat.transformers import add_default_callback, remove_default_callback
from tests.sparsity.models import llama


def test_a_default_callback_is_added_once_and_can_be_removed(tmp_path: Path) -> None:
    class Ours(TrainerCallback):
        pass

    def callbacks() -> int:
        trainer = Trainer(llama(), TrainingArguments(output_dir=str(tmp_path), report_to="none"))
        return sum(isinstance(callback, Ours) for callback in trainer.callback_handler.callbacks)

    add_default_callback(Ours)
    add_default_callback(Ours)
    assert callbacks() == 1
    remove_default_callback("Ours")
    assert callbacks() == 0
