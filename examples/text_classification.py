"""Fine-tune a text classifier with a sharpness-aware method: one flag chooses which.

    python -m examples.text_classification --output_dir out --method s2sam --rho 0.05
    accelerate launch -m examples.text_classification --output_dir out --method zosam --probe_fraction 0.5
    accelerate launch --multi_gpu --num_processes 2 -m examples.text_classification --output_dir out --use_cpu true
    python -m examples.text_classification --output_dir out --train_file my.csv --test_file test.csv --rho 0   # plain

Without files it takes rotten-tomatoes reviews and the encoder MiniLM-L6, both from packages (see real_data.py). All
arguments of `TrainingArguments` and `SAMArguments` are accepted; csv files have the columns `text` and `label`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from examples import real_data
from hf_efficient import SAMArguments, SAMTrainer


@dataclass
class ScriptArguments:
    """Data and model."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Default: MiniLM-L6 from its package."})
    data: str = field(default="rotten_tomatoes", metadata={"help": "rotten_tomatoes, newsgroups or reuters_r52."})
    train_file: str | None = field(default=None, metadata={"help": "csv with the columns text and label, instead."})
    test_file: str | None = field(default=None, metadata={"help": "csv, like train_file."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only so many training texts."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Only so many test texts."})
    max_length: int = field(default=128, metadata={"help": "Tokens per text."})


def datasets_of(script: ScriptArguments) -> tuple[Dataset, Dataset, list[str]]:
    """Training and test data with the columns text and label (a number), and the names of the classes."""
    if script.train_file is not None:
        files = {"train": script.train_file, "test": script.test_file or script.train_file}
        loaded = load_dataset("csv", data_files=files)
        names = sorted({str(label) for label in loaded["train"]["label"]})
        numbered = loaded.map(lambda row: {"label": str(row["label"])}).cast_column("label", ClassLabel(names=names))
        return numbered["train"], numbered["test"], names
    parts = [getattr(real_data, script.data)(train) for train in (True, False)]
    train, test = (Dataset.from_dict({"text": part.texts, "label": part.labels}) for part in parts)
    return train, test, list(parts[0].classes)


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, TrainingArguments, SAMArguments))
    script, training, sam = parser.parse_args_into_dataclasses()
    set_seed(training.seed)
    with training.main_process_first(desc="data"):  # one process fetches, the others read
        train, test, names = datasets_of(script)
    train = train.shuffle(seed=training.seed).select(range(min(len(train), script.max_train_samples or len(train))))
    test = test.shuffle(seed=0).select(range(min(len(test), script.max_test_samples or len(test))))

    source = script.model_name_or_path or str(real_data.minilm())
    tokenizer = AutoTokenizer.from_pretrained(source)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = AutoModelForSequenceClassification.from_pretrained(source, ignore_mismatched_sizes=True, **labels)

    def tokens(rows: dict[str, Any]) -> Any:
        return tokenizer(rows["text"], truncation=True, max_length=script.max_length)

    trainer = SAMTrainer(
        model,
        training,
        sam_args=sam,
        train_dataset=train.map(tokens, batched=True, remove_columns=["text"]),
        eval_dataset=test.map(tokens, batched=True, remove_columns=["text"]),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.log_metrics("eval", trainer.evaluate())
    trainer.save_model()
    trainer.create_model_card(tasks="text-classification")


if __name__ == "__main__":
    main()
