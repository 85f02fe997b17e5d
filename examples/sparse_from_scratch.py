"""A sparse ViT trained from scratch with the Trainer: `python -m examples.sparse_from_scratch`.

Fashion-MNIST; 90 % of the weights of all linear layers are zero from the first step to the last, and training finds
which. The result is a plain ViT with zeros, its accuracy, and two files: one that transformers loads, and a small one.
About two minutes on one core.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, TrainingArguments, ViTConfig, ViTForImageClassification

from examples.real_data import fashion_mnist
from hf_efficient import BiDSTConfig, BiDSTTrainer, load_sparse, save_sparse
from hf_efficient.methods import SPARSITY, settings_of


class Garments(Dataset[dict[str, torch.Tensor]]):
    """The first `size` images of a part of Fashion-MNIST."""

    def __init__(self, train: bool, size: int) -> None:
        pixels, classes = fashion_mnist(train)
        self.x = (torch.tensor(pixels[:size]).float().unsqueeze(1) / 255 - 0.286) / 0.353
        self.y = torch.tensor(classes[:size])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.x[i], "labels": self.y[i]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--topology", default="bidst")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--output", type=Path, default=Path("sparse_vit"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=28, patch_size=7, num_channels=1, hidden_size=64, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    trainer = BiDSTTrainer(
        ViTForImageClassification(config),
        TrainingArguments(
            output_dir=str(arguments.output / "training"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=500,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            logging_steps=100,
            save_strategy="no",
        ),
        sparsity_config=BiDSTConfig(
            sparsity=arguments.sparsity,
            topology=arguments.topology,
            **settings_of(SPARSITY, arguments.topology, update_interval=50),
        ),
        train_dataset=Garments(True, arguments.images),
        eval_dataset=Garments(False, 10_000),
        compute_metrics=accuracy,
    )
    trainer.train()
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.1%}")

    model = trainer.model.merge_and_unload()  # a ViTForImageClassification again
    model.save_pretrained(arguments.output / "plain")
    small = save_sparse(model, arguments.output / "sparse")
    large = arguments.output / "plain" / "model.safetensors"
    print(f"{large} {large.stat().st_size / 1e3:.0f} kB, {small} {small.stat().st_size / 1e3:.0f} kB")
    again = load_sparse(arguments.output / "sparse")
    print(
        "the same weights:", all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    )


if __name__ == "__main__":
    main()
