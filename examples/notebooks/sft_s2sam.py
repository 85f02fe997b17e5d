# %% [markdown]
# # Fine-tune a language model with S2-SAM
#
# TRL's `SFTTrainer` with a mix-in: the weights are moved along the gradient of the step before, so a step costs what a
# plain one does. It pays with wrong labels and long training on few examples; on clean data expect little.
#
# `pip install '.[training]' trl datasets`
# %%
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from hf_efficient import SAMArguments, SAMTrainerMixin

MODEL = "Qwen/Qwen3-0.6B"
# %% [markdown]
# The class: one line.
# %%


class S2SAMSFTTrainer(SAMTrainerMixin, SFTTrainer):
    """SFT whose gradients are taken uphill of the weights."""


# %% [markdown]
# Your data: texts, or conversations, as TRL takes them.
# %%
data = Dataset.from_dict({"text": ["a cat sat on the mat", "a dog sat on the log"] * 32})
# %%
trainer = S2SAMSFTTrainer(
    model=MODEL,
    args=SFTConfig("runs/sft_s2sam", max_steps=20, per_device_train_batch_size=4, report_to=[]),
    train_dataset=data,
    sam_args=SAMArguments(method="s2sam", rho=0.05),
)
trainer.train()
# %% [markdown]
# The model, and a card that names the method and its settings.
# %%
trainer.save_model("runs/sft_s2sam/final")
trainer.create_model_card()
