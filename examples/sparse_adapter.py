"""A sparse adapter whose indices are learned: `python -m examples.sparse_adapter`.

MiniLM-L6 learns the sentiment of film reviews with 0.5 % of its weights: BiDST's delta through PEFT and the plain
Trainer. Then the adapter is saved, loaded by PEFT, and merged. About three minutes on one core.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, TaskType, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

from examples.real_data import Texts, minilm, rotten_tomatoes
from hf_efficient import BiDSTConfig


class Reviews(Dataset[dict[str, torch.Tensor]]):
    """Snippets of at most 40 tokens."""

    def __init__(self, texts: Texts, tokenizer: object, size: int) -> None:
        order = np.random.default_rng(0).permutation(len(texts.texts))[:size]
        chosen = [texts.texts[i] for i in order]
        self.tokens = tokenizer(chosen, truncation=True, max_length=40, padding=True, return_tensors="pt")  # type: ignore[operator]
        self.labels = torch.tensor(texts.labels[order])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {**{name: tensor[i] for name, tensor in self.tokens.items()}, "labels": self.labels[i]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.995)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output", type=Path, default=Path("sparse_adapter"))
    arguments = parser.parse_args()

    def base() -> AutoModelForSequenceClassification:
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)

    tokenizer = AutoTokenizer.from_pretrained(minilm())
    config = BiDSTConfig(
        target="delta",
        sparsity=arguments.sparsity,
        target_modules="all-linear",
        distribution="global",  # layers share one budget: those that need more get more
        update_interval=10,
        score_interval=5,
        task_type=TaskType.SEQ_CLS,
    )
    model = get_peft_model(base(), config)
    model.print_trainable_parameters()
    test = Reviews(rotten_tomatoes(False), tokenizer, 500)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(arguments.output / "training"),
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=50,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            logging_steps=20,
            save_strategy="no",
        ),
        train_dataset=Reviews(rotten_tomatoes(True), tokenizer, arguments.texts),
        eval_dataset=test,
        compute_metrics=accuracy,
    )
    trainer.train()
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.1%}")

    model.save_pretrained(arguments.output / "adapter")
    again = PeftModel.from_pretrained(base(), arguments.output / "adapter").eval()
    batch = {name: tensor[:8] for name, tensor in test.tokens.items()}
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        print("loaded: the same answers:", torch.equal(again(**batch).logits, expected))
        print("merged: the same answers:", torch.equal(again.merge_and_unload()(**batch).logits, expected))


if __name__ == "__main__":
    main()
