"""The mix-in in every mode of the Trainer: rho = 0 is the plain Trainer, and no step leaves the weights moved."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient import SAMArguments, SAMTrainer
from tests.optimization.training.trainers import METHODS, Scaled, bert, causal_rows, same, state, tied_llama, trained


def frozen_bert() -> Any:
    model = bert()
    for p in model.bert.embeddings.parameters():
        p.requires_grad_(False)
    return model


def lora_bert() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))


class Grouped:
    """Three groups of parameters with rates and decays of their own."""

    def create_optimizer(self: Any, *args: Any) -> Any:
        if self.optimizer is None:
            embeddings, layers, head = self.model.bert.embeddings, self.model.bert.encoder, self.model.classifier
            groups = [
                {"params": embeddings.parameters(), "lr": 1e-3},
                {"params": layers.parameters(), "weight_decay": 0.1},
                {"params": head.parameters(), "lr": 1e-1, "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=1e-2)
        return self.optimizer


MODES: dict[str, dict[str, Any]] = {
    "simple": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "clipping": {"max_grad_norm": 0.1},
    "bf16": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True},
    "frozen": {"model": frozen_bert},
    "tied": {"model": tied_llama, "data": causal_rows},
    "lora": {"model": lora_bert},
    "weight_decay": {"weight_decay": 0.1, "optim": "adamw_torch"},
    "groups": {"mixin": Grouped},
    "scaler": {"mixin": Scaled, "max_steps": 10, "max_grad_norm": 0.0},  # whose first steps overflow
    "half": {"model": lambda: bert().bfloat16()},
    "epochs": {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 5},  # a last window of two
}


def methods_for(mode: str) -> list[SAMArguments]:
    """All variants in the simple mode; in the others those whose passes differ in kind."""
    if mode == "simple":
        return list(METHODS.values())
    # 16 bits hold neither the probes of zosam nor the difference of its losses
    return [METHODS[name] for name in (("sam", "s2sam") if mode == "half" else ("sam", "s2sam", "zosam"))]


def options(mode: str) -> dict[str, Any]:
    chosen = dict(MODES[mode])
    for name in ("model", "data"):
        if name in chosen:
            chosen[name] = chosen[name]()
    return chosen


@pytest.mark.parametrize("mode", MODES)
def test_rho_zero_is_the_plain_trainer_to_the_bit(mode: str, tmp_path: Path) -> None:
    plain = trained(tmp_path, None, **options(mode))
    for method in methods_for(mode):
        ours = trained(tmp_path, dataclasses.replace(method, rho=0.0), **options(mode))
        assert same(state(ours.model), state(plain.model)), method.method


@pytest.mark.parametrize("mode", MODES)
def test_training_step_leaves_the_weights_to_the_bit(mode: str, tmp_path: Path) -> None:
    class Watched(SAMTrainer):
        def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            before = state(model)
            loss = super().training_step(model, *args, **kwargs)
            assert same(before, state(model))
            self.watched = getattr(self, "watched", 0) + 1
            return loss

    plain = trained(tmp_path, None, **options(mode))
    for method in methods_for(mode):
        ours = trained(tmp_path, dataclasses.replace(method, rho=method.rho * 4), cls=Watched, **options(mode))
        assert ours.watched >= 4
        assert not same(state(ours.model), state(plain.model)), method.method


@pytest.mark.slow
def test_models_compiled_by_torch_train_the_same(tmp_path: Path) -> None:
    torch._dynamo.config.suppress_errors = False
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", "max_steps": 3}
    for method in ("s2sam", "sam", "zosam"):
        ours = trained(tmp_path, METHODS[method], bert(0.0), **compiled)
        eager = trained(tmp_path, METHODS[method], bert(0.0), max_steps=3)
        for a, b in zip(ours.model.parameters(), eager.model.parameters()):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    plain = trained(tmp_path, None, bert(0.0), **compiled)
    still = trained(tmp_path, SAMArguments("sam", rho=0.0), bert(0.0), **compiled)
    assert same(state(still.model), state(plain.model))
