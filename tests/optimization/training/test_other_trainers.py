"""The mix-in in other libraries' Trainers, TRL's DPO and reward and sentence-transformers', against steps by hand."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from hf_efficient import SAMArguments, SAMTrainerMixin
from tests.optimization.training.test_trl import tokenizer

RHO = 0.3
ARGUMENTS = {name: SAMArguments(name, rho=RHO) for name in ("sam", "s2sam")}
COMMON: dict[str, Any] = {
    "max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "report_to": "none",
    "save_strategy": "no", "disable_tqdm": True, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant", "logging_steps": 1,
}  # fmt: skip


class ByHand:
    """Before a Trainer: SAM or S2-SAM as the equations have it, knowing nothing of the package."""

    by_hand = "sam"

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        parent = super().training_step  # type: ignore[misc]
        params = [p for p in model.parameters() if p.requires_grad]
        gradients = lambda: {p: p.grad.clone() for p in params if p.grad is not None}
        direction = getattr(self, "last", {})
        if self.by_hand == "sam":
            state = torch.get_rng_state()
            parent(model, dict(inputs), *args, **kwargs)
            torch.set_rng_state(state)
            direction = gradients()
            model.zero_grad()
        saved = [p.detach().clone() for p in params]
        norm = sum(float(g.square().sum()) for g in direction.values()) ** 0.5
        with torch.no_grad():
            for p, g in direction.items():
                p.add_(g, alpha=RHO / norm)
        loss: Tensor = parent(model, dict(inputs), *args, **kwargs)
        self.last = gradients()
        with torch.no_grad():
            for p, w in zip(params, saved):
                p.copy_(w)
        return loss


def llama(cls: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, **kwargs,
    )  # fmt: skip
    return cls(config)


def pairs() -> Dataset:
    words = lambda i, k: " ".join(f"w{(i * j + k) % 40}" for j in range(1, 4 + i % 3))
    return Dataset.from_dict({name: [words(i, k) for i in range(12)] for k, name in enumerate(("chosen", "rejected"))})


def dpo(folder: Path, cls: Any, **kwargs: Any) -> Any:
    trl = pytest.importorskip("trl")
    model, data = llama(LlamaForCausalLM), pairs().add_column("prompt", ["w1 w2"] * 12)  # type: ignore[call-arg]
    reference = {} if "peft_config" in kwargs else {"ref_model": copy.deepcopy(model)}
    made = type("Made", (cls, trl.DPOTrainer), {}) if cls else trl.DPOTrainer
    return made(model, args=trl.DPOConfig(str(folder), **COMMON), train_dataset=data, processing_class=tokenizer(),
                **reference, **kwargs)  # fmt: skip


def reward(folder: Path, cls: Any, **kwargs: Any) -> Any:
    trl = pytest.importorskip("trl")
    made = type("Made", (cls, trl.RewardTrainer), {}) if cls else trl.RewardTrainer
    return made(llama(LlamaForSequenceClassification, num_labels=1), args=trl.RewardConfig(str(folder), **COMMON),
                train_dataset=pairs(), processing_class=tokenizer(), **kwargs)  # fmt: skip


def embedding(folder: Path, cls: Any, **kwargs: Any) -> Any:
    st = pytest.importorskip("sentence_transformers")
    torch.manual_seed(0)
    base = folder / "base"
    BertModel(BertConfig(vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32, max_position_embeddings=32)).save_pretrained(base)  # fmt: skip
    tokenizer().save_pretrained(base)
    modules = pytest.importorskip("sentence_transformers.models")
    transformer = modules.Transformer(str(base), max_seq_length=16)
    model = st.SentenceTransformer(modules=[transformer, modules.Pooling(16)], device="cpu")
    made = type("Made", (cls, st.SentenceTransformerTrainer), {}) if cls else st.SentenceTransformerTrainer
    args = st.SentenceTransformerTrainingArguments(str(folder), **{**COMMON, "learning_rate": 1e-3})  # large gradients
    loss = pytest.importorskip("sentence_transformers.losses").MultipleNegativesRankingLoss(model)
    return made(model, args=args, train_dataset=pairs(), loss=loss, **kwargs)


TRAINERS = {"DPO": dpo, "reward": reward, "embedding": embedding}


def weights(trainer: Any) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize("method", ARGUMENTS)
@pytest.mark.parametrize("name", TRAINERS)
def test_steps_are_those_by_hand(name: str, method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = TRAINERS[name](tmp_path / "ours", SAMTrainerMixin, sam_args=ARGUMENTS[method])  # which sets the seed
    start = weights(ours)
    ours.train()
    theirs = TRAINERS[name](tmp_path / "theirs", type("Hand", (ByHand,), {"by_hand": method}))
    theirs.train()
    for p, q in zip(weights(ours), weights(theirs)):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)
    assert any((a != b).any() for a, b in zip(start, weights(ours)))
    assert "has moved no weight" not in caplog.text


@pytest.mark.parametrize("name", ["DPO", "reward"])
def test_at_distance_zero_they_are_the_stock_trainers_and_count_as_these(name: str, tmp_path: Path) -> None:
    ours = TRAINERS[name](tmp_path, SAMTrainerMixin, sam_args=SAMArguments("sam", rho=0.0))
    stock = TRAINERS[name](tmp_path, None)
    away = TRAINERS[name](tmp_path, SAMTrainerMixin, sam_args=ARGUMENTS["sam"])
    for trainer in (ours, stock, away):
        trainer.train()
    assert all(torch.equal(p, q) for p, q in zip(weights(ours), weights(stock)))
    logs = [[entry["num_tokens"] for entry in t.state.log_history if "num_tokens" in entry] for t in (stock, away)]
    assert logs[0] == logs[1] != []


def test_dpo_moves_merged_weights_and_not_its_reference(tmp_path: Path) -> None:
    """Whose log-probabilities are those of the base model with adapters off, where no term is added."""
    logged = []
    for rho in (0.0, 2.0):
        arguments = SAMArguments("s2sam", rho=rho, perturb="merged")
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        torch.manual_seed(0)
        trainer = dpo(tmp_path, SAMTrainerMixin, sam_args=arguments, peft_config=config)
        seen: list[Tensor] = []
        compute = trainer.compute_loss

        def watched(model: Any, inputs: Any, *args: Any, trainer: Any = trainer, seen: Any = seen,
                    compute: Any = compute, **kwargs: Any) -> Any:  # fmt: skip
            ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            with torch.no_grad(), trainer.accelerator.unwrap_model(model).disable_adapter():
                seen.append(model(**ids).logits)
            return compute(model, inputs, *args, **kwargs)

        trainer.compute_loss = watched
        trainer.train()
        logged.append((seen, weights(trainer)))
    (plain, still), (away, moved) = logged
    assert all(torch.equal(a, b) for a, b in zip(plain, away))
    assert any((a != b).any() for a, b in zip(still, moved))
