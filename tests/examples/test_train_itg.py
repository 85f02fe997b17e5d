"""The example that trains ITG's generator: what it compares is the model with all tokens, and it resumes."""

import sys

import numpy as np
import pytest
import torch

from examples import train_itg
from examples.tiny_vlm.data import TurnData, collate_turns
from examples.tiny_vlm.scenes import GARMENTS
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.evaluation.questions import load_vlm
from tests.examples.test_tiny_vlm_training import images  # noqa: F401


@pytest.fixture(scope="module")
def vlm():
    return load_vlm()


def batch_of(processor, shown):
    data = TurnData(shown, processor.tokenizer, length=6, turns=4)
    return collate_turns([data[i] for i in range(6)])


def test_with_all_tokens_student_and_teacher_are_one(vlm, images):  # noqa: F811
    model, processor = vlm
    batch = batch_of(processor, images)
    with torch.no_grad():
        whole = model.base_model.get_image_features(batch["pixel_values"], return_dict=True)
        teacher = train_itg.answer_logits(model, batch, whole)
        every = torch.arange(144).expand(6, -1)
        assert torch.equal(train_itg.answer_logits(model, train_itg.only_kept(batch, every, 144), whole), teacher)


def test_fewer_tokens_are_the_model_that_may_not_look_at_the_others(vlm, images):  # noqa: F811
    """Dropping columns equals masking them, for positions stay."""
    model, processor = vlm
    batch = batch_of(processor, images)
    config = TokenPrunerConfig(budget=5, positions="original")
    with torch.no_grad():
        whole = model.base_model.get_image_features(batch["pixel_values"], return_dict=True)
        with token_pruner(model, processor, config):
            made = model.base_model.get_image_features(batch["pixel_values"], return_dict=True)
            anchors = torch.stack([unit.indices for unit in made.kept])
            student = train_itg.answer_logits(model, train_itg.only_kept(batch, anchors, 144), made)
        seen = torch.ones(6, batch["input_ids"].shape[1], dtype=torch.bool)
        seen[:, 1:145] = False
        seen.scatter_(1, 1 + anchors, True)
        masked = {**batch, "attention_mask": batch["attention_mask"] & seen[:, None, None]}
        # rows of tokens that are not seen may see nothing, which is no matter: nobody looks at them
        expected = train_itg.answer_logits(model, masked, whole)
    torch.testing.assert_close(student, expected, atol=1e-4, rtol=1e-4)


def test_it_trains_resumes_and_leaves_a_folder_to_attach(tmp_path, monkeypatch, vlm):
    rng = np.random.default_rng(0)
    shown = {word: rng.integers(0, 256, (3, 28, 28), np.uint8) for word in GARMENTS}
    monkeypatch.setattr(train_itg, "load_fashion_mnist", lambda *_: shown)

    def run(folder, steps):
        line = ["train_itg.py", "--output-dir", str(folder), "--steps", str(steps), "--batch", "2", "--turns", "2"]
        monkeypatch.setattr(sys, "argv", [*line, "--hidden", "16", "--save-steps", "2"])
        train_itg.main()
        return TokenPrunerConfig.from_pretrained(folder / "pruner")

    whole = run(tmp_path / "one", 4)
    monkeypatch.setattr(train_itg.GeneratorTrainer, "compute_loss", interrupted(train_itg.GeneratorTrainer, at=3))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "two", 4)
    monkeypatch.undo()
    monkeypatch.setattr(train_itg, "load_fashion_mnist", lambda *_: shown)
    again = run(tmp_path / "two", 4)
    for name, value in whole.generator.state_dict().items():
        torch.testing.assert_close(again.generator.state_dict()[name], value, atol=1e-6, rtol=1e-4)
    assert whole.generator.up.weight.abs().max() > 0
    model, processor = vlm
    with token_pruner(model, processor, tmp_path / "one" / "pruner"):
        assert model.base_model.token_pruner.config.generator is not None


def interrupted(trainer, at):
    """compute_loss that stops the run at a step."""
    plain = trainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    return compute_loss
