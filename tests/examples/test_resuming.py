"""An interrupted training of a VLM goes on where it was."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from examples.tiny_vlm.architecture import make_processor, make_vlm
from examples.tiny_vlm.data import TurnData, collate_turns
from examples.tiny_vlm.encoded import FromFile
from examples.tiny_vlm.scenes import GARMENTS
from examples.tiny_vlm.training import train_on


def trained(folder, data, steps, tokenizer, from_file):
    """Weights after so many steps, from the checkpoint in the folder if there is one."""
    set_seed(0)
    model = make_vlm(tokenizer)
    if from_file:
        model.model.vision_tower = FromFile(model.config.vision_config.num_hidden_layers + 1)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-3, save_steps=2,
        lr_scheduler_type="constant", remove_unused_columns=False, report_to="none", disable_tqdm=True, use_cpu=True,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    train_on(Trainer(model, arguments, train_dataset=data, data_collator=collate_turns))
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("from_file", [False, True])
def test_two_steps_and_two_more_are_four(tmp_path, from_file):
    rng = np.random.default_rng(0)
    images = {word: rng.integers(0, 256, (3, 28, 28), np.uint8) for word in GARMENTS}
    tokenizer = make_processor().tokenizer
    rows = [TurnData(images, tokenizer, length=8, turns=3)[number] for number in range(8)]
    if from_file:
        rows = [{**row, "pixel_values": torch.randn(145, 128)} for row in rows]
    whole = trained(tmp_path / "whole", rows, 4, tokenizer, from_file)
    half = trained(tmp_path / "parts", rows, 2, tokenizer, from_file)
    parts = trained(tmp_path / "parts", rows, 4, tokenizer, from_file)
    assert any(not torch.equal(half[name], whole[name]) for name in whole)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0, msg=name)
