"""The PEFT tuner and its Trainer."""
