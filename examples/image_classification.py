"""Train an image classifier with a sharpness-aware method: one flag chooses which.

    python -m examples.image_classification --output_dir out --method s2sam --rho 0.1 --label_noise 0.4
    accelerate launch -m examples.image_classification --output_dir out --method sam
    python -m examples.image_classification --output_dir out --image_folder images/ --model_name_or_path my/vit

Without a folder it takes Fashion-MNIST (Debian: `apt-get install dataset-fashion-mnist`) and a ViT small enough for a
CPU, trained from scratch. A folder has one folder of images per class in `train/` and `test/`. All arguments of
`TrainingArguments` and `SAMArguments` are accepted; `--rho 0` is plain training.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from examples import real_data
from hf_efficient import SAMArguments, SAMTrainer, recalibrate_batch_norm


@dataclass
class ScriptArguments:
    """Data and model."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Default: a small ViT from scratch."})
    image_folder: str | None = field(default=None, metadata={"help": "train/<class>/*, test/<class>/*."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only so many training images."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Only so many test images."})
    label_noise: float = field(default=0.0, metadata={"help": "Share of training labels replaced at random."})


def datasets_of(script: ScriptArguments) -> tuple[Dataset, Dataset, list[str]]:
    """Training and test data with the columns image and label, and the names of the classes."""
    if script.image_folder is not None:
        loaded = load_dataset("imagefolder", data_dir=script.image_folder)
        return loaded["train"], loaded["test"], loaded["train"].features["label"].names
    parts = [real_data.fashion_mnist(train) for train in (True, False)]
    train, test = (
        Dataset.from_dict({"image": list(range(len(y))), "label": y}).with_transform(
            lambda rows, x=x: {"image": [Image.fromarray(x[i]) for i in rows["image"]], "label": rows["label"]}
        )
        for x, y in parts
    )
    return train, test, [str(number) for number in range(10)]


def model_of(script: ScriptArguments, names: list[str]) -> tuple[Any, Any]:
    """The model, and what turns a list of images into pixel values."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if script.model_name_or_path is not None:
        processor = AutoImageProcessor.from_pretrained(script.model_name_or_path)
        model = AutoModelForImageClassification.from_pretrained(
            script.model_name_or_path, ignore_mismatched_sizes=True, **labels
        )
        return model, lambda images: processor([image.convert("RGB") for image in images], return_tensors="pt")[
            "pixel_values"
        ]
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, image_size=28, patch_size=7,
        num_channels=1, **labels,
    )  # fmt: skip
    small = lambda images: torch.stack([torch.from_numpy(np.array(i, np.float32))[None] / 127.5 - 1 for i in images])  # noqa: E731
    return ViTForImageClassification(config), small


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, TrainingArguments, SAMArguments))
    script, training, sam = parser.parse_args_into_dataclasses()
    training.remove_unused_columns = False  # the collator needs the images
    set_seed(training.seed)
    with training.main_process_first(desc="data"):  # one process fetches, the others read
        train, test, names = datasets_of(script)
    train = train.shuffle(seed=training.seed).select(range(min(len(train), script.max_train_samples or len(train))))
    test = test.select(range(min(len(test), script.max_test_samples or len(test))))
    rng = np.random.default_rng(training.seed)
    noisy = {
        int(i): int(rng.integers(len(names)))
        for i in rng.permutation(len(train))[: int(script.label_noise * len(train))]
    }
    model, pixel_values = model_of(script, names)

    class Numbered(torch.utils.data.Dataset):
        """Training data with noisy labels."""

        def __len__(self) -> int:
            return len(train)

        def __getitem__(self, i: int) -> dict[str, Any]:
            row = train[i]
            return {"image": row["image"], "label": noisy.get(i, row["label"])}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([row["label"] for row in rows])
        return {"pixel_values": pixel_values([row["image"] for row in rows]), "labels": labels}

    trainer = SAMTrainer(
        model,
        training,
        sam_args=sam,
        train_dataset=Numbered(),
        eval_dataset=test,
        data_collator=collate,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    calibration = [batch for _, batch in zip(range(20), trainer.get_train_dataloader(), strict=False)]
    recalibrate_batch_norm(model, calibration)  # does nothing to a ViT
    trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_model()
    trainer.create_model_card(tasks="image-classification")


if __name__ == "__main__":
    main()
