"""Train the refinement of ITG's tokens: `python -m examples.train_itg --output-dir runs/itg`.

A small cross-attention module (`TokenGenerator`) learns what the K tokens that ITG makes in closed form should rather
be, for a frozen VLM. Two losses: the model with K tokens shall answer like the model with all of them (Kullback-Leibler
divergence over the words of answers), and the K tokens shall stand for all tokens of the image (squared error
relative to their variance). Budgets take turns, so that one module serves them all. With the HF Trainer, resumable:
run the same command again.

The result is a config with `generator.safetensors` beside it, OUTPUT/pruner: `attach_token_pruner(model, processor,
"OUTPUT/pruner")`. Needs Fashion-MNIST (Debian: `apt-get install dataset-fashion-mnist`); only its training images
are used.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from examples.tiny_vlm.data import IGNORED, TurnData, collate_turns
from examples.tiny_vlm.scenes import FASHION_MNIST, LAYOUTS, load_fashion_mnist
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.evaluation.questions import TINY_VLM, load_vlm
from hf_efficient.representation.generator import TokenGenerator
from hf_efficient.representation.reduce import reconstruction_error


class GeneratorTrainer(Trainer):
    """Trains a generator, which is `model`, inside a frozen VLM."""

    def __init__(self, vlm: Any, processor: Any, budgets: list[int], reconstruction: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vlm, self.processor = vlm, processor
        self.budgets, self.reconstruction = budgets, reconstruction

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Tensor:
        """Divergence from the answers with all tokens, and what the generated tokens leave out."""
        pixels, base = inputs.pop("pixel_values"), self.vlm.base_model
        budget = self.budgets[self.state.global_step % len(self.budgets)]
        config = TokenPrunerConfig(method="itg", budget=budget, generator=model)
        with torch.no_grad():
            whole = base.get_image_features(pixels, return_dict=True)
            teacher = answer_logits(self.vlm, inputs, whole)
        with token_pruner(self.vlm, self.processor, config):
            made = base.get_image_features(pixels, return_dict=True)
            anchors = torch.stack([unit.indices for unit in made.kept])
            student = answer_logits(self.vlm, only_kept(inputs, anchors, len(whole.pooler_output[0])), made)
        told = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
        assignment = torch.stack([unit.assignment for unit in made.kept])
        features, tokens = (torch.stack(list(output.pooler_output)) for output in (whole, made))
        lost = reconstruction_error(features, tokens, assignment, torch.ones_like(features[..., 0]), None).mean()
        return told + self.reconstruction * lost


def answer_logits(vlm: Any, inputs: dict[str, Tensor], encoded: Any) -> Tensor:
    """Logits (A, V) in float32 where the words of answers are due."""
    call = {name: inputs[name] for name in ("input_ids", "position_ids", "attention_mask")}
    logits = vlm(**call, mm_encoder_outputs={"image": encoded}).logits
    return logits[:, :-1][inputs["labels"][:, 1:] != IGNORED].float()


def only_kept(inputs: dict[str, Tensor], anchors: Tensor, n: int) -> dict[str, Tensor]:
    """Inputs of packed turns with placeholders at the anchors (B, K) alone of the n behind the first token."""
    length = inputs["input_ids"].shape[1]
    start, rest = anchors.new_zeros(len(anchors), 1), torch.arange(n + 1, length).expand(len(anchors), -1)
    columns = torch.cat([start, 1 + anchors, rest], dim=1)
    kept = {name: inputs[name].gather(1, columns) for name in ("input_ids", "position_ids", "labels")}
    mask = inputs["attention_mask"].gather(2, columns[:, None, :, None].expand(-1, -1, -1, length))
    return {**kept, "attention_mask": mask.gather(3, columns[:, None, None].expand(-1, -1, columns.shape[1], -1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", default=str(TINY_VLM), help="folder of the VLM, a LLaVA")
    parser.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, help="folder of the four .gz files")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 4, 2, 9, 2, 36], help="tokens, in turns")
    parser.add_argument("--reconstruction", type=float, default=0.1, help="weight of the reconstruction error")
    parser.add_argument("--hidden", type=int, default=96, help="width of the generator's decoder")
    parser.add_argument("--layers", type=int, default=2, help="its layers")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16, help="scenes per step")
    parser.add_argument("--turns", type=int, default=12, help="questions per scene")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--save-steps", type=int, default=100, help="steps from one checkpoint to the next")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    set_seed(arguments.seed)
    vlm, processor = load_vlm(arguments.model)
    vlm.requires_grad_(False)
    width = vlm.config.get_text_config().hidden_size
    generator = TokenGenerator(width, hidden=arguments.hidden, layers=arguments.layers)
    data = TurnData(
        load_fashion_mnist("train", arguments.fashion_mnist), processor.tokenizer, arguments.steps * arguments.batch,
        turns=arguments.turns, seed=5000 + arguments.seed, layout=LAYOUTS["standard"],
    )  # fmt: skip
    training = TrainingArguments(
        output_dir=str(arguments.output_dir), max_steps=arguments.steps, per_device_train_batch_size=arguments.batch,
        learning_rate=arguments.learning_rate, warmup_steps=50, lr_scheduler_type="cosine", weight_decay=0.01,
        max_grad_norm=1.0, bf16=True, seed=arguments.seed, data_seed=arguments.seed, logging_steps=25,
        save_steps=arguments.save_steps, save_total_limit=1, remove_unused_columns=False, report_to="none",
        disable_tqdm=True, train_sampling_strategy="sequential", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = GeneratorTrainer(
        vlm, processor, arguments.budgets, arguments.reconstruction,
        model=generator, args=training, train_dataset=data, data_collator=collate_turns,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(training.output_dir))
    config = TokenPrunerConfig(method="itg", budget=min(arguments.budgets), generator=generator)
    config.save_pretrained(arguments.output_dir / "pruner")


if __name__ == "__main__":
    main()
