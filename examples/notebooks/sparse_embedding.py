# %% [markdown]
# # A sparse adapter for a sentence encoder
#
# `BiDSTConfig(target="delta")` trains a few entries of each weight and learns which. It is a PEFT method, so the
# trainer of sentence-transformers takes it as any adapter.
#
# `pip install '.[sparsity]' sentence-transformers datasets`
# %%
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

from hf_efficient import BiDSTConfig, SparsityCallback

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# %%
model = SentenceTransformer(MODEL)
model.add_adapter(BiDSTConfig(target="delta", sparsity=0.98, target_modules=["query", "value"]))
# %% [markdown]
# Pairs that belong together; the others of a batch are the negatives.
# %%
pairs = Dataset.from_dict({"anchor": ["a red boot", "a blue hat"] * 16, "positive": ["footwear", "headwear"] * 16})
args = SentenceTransformerTrainingArguments(
    "runs/sparse_embedding", max_steps=10, per_device_train_batch_size=4, report_to=[]
)
# %% [markdown]
# The callback moves entries to where they lower the loss.
# %%
loss = MultipleNegativesRankingLoss(model)
trainer = SentenceTransformerTrainer(model, args, train_dataset=pairs, loss=loss, callbacks=[SparsityCallback()])
trainer.train()
model.save_pretrained("runs/sparse_embedding/final")
