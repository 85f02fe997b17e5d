"""Trainers that move merged weights of LoRA: as the torch optimizers do, resumed to the bit, over 4 and 8 bits."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_efficient import S2SAM, SAM, SAMArguments, SAMTrainer
from tests.optimization.training.test_resume import KillAt, Killed
from tests.optimization.training.trainers import bert, build, rows, same, state, trained

ARGUMENTS = {name: SAMArguments(name, rho=0.3, perturb="merged") for name in ("sam", "s2sam")}
#: Rows in the data's order, and a rate that stays.
PLAIN: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "lr_scheduler_type": "constant",
                         "train_sampling_strategy": "sequential"}  # fmt: skip


def adapted(dropout: float = 0.0, **kwargs: Any) -> Any:
    base = bert(dropout)
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"], modules_to_save=["classifier"], **kwargs)
    return get_peft_model(base, config)


def by_hand(cls: Any, count: int, scale: float) -> nn.Module:
    """The same steps with a torch optimizer in a plain loop; stock Trainers add up BERT's losses under PEFT."""
    model = adapted().double()
    opt = cls([p for p in model.parameters() if p.requires_grad], torch.optim.SGD, rho=0.3, lr=0.1, merged=model)
    data = rows()
    for step in range(count):
        of = data[4 * step : 4 * step + 4]
        inputs = {"input_ids": torch.stack([row["input_ids"] for row in of]),
                  "labels": torch.tensor([row["labels"] for row in of])}  # fmt: skip
        loss = lambda inputs=inputs: model(**inputs).loss * scale
        opt.perturb(loss)
        loss().backward()
        opt.step()
        opt.zero_grad()
    return model


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", ARGUMENTS)
def test_the_trainer_takes_the_steps_of_the_torch_optimizer(method: str, accumulation: int, tmp_path: Path) -> None:
    kwargs = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation, **PLAIN}
    model = trained(tmp_path, ARGUMENTS[method], adapted().double(), max_steps=5, **kwargs).model
    expected = by_hand({"sam": SAM, "s2sam": S2SAM}[method], 5, accumulation)
    for p, q in zip(model.parameters(), expected.parameters()):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)
    others = trained(
        tmp_path, dataclasses.replace(ARGUMENTS[method], perturb="weights"), adapted(), max_steps=5, **kwargs
    )
    assert not same(state(model), state(others.model))


def test_a_run_that_is_taken_up_again_ends_at_the_same_bits(tmp_path: Path) -> None:
    """With dropout in the adapter and the network, and gradient checkpointing."""
    settings = dataclasses.replace(ARGUMENTS["s2sam"], rho_schedule="cosine")
    kwargs: dict[str, Any] = {"max_steps": 8, "gradient_accumulation_steps": 2, "save_strategy": "steps",
                              "save_steps": 3, "gradient_checkpointing": True}  # fmt: skip
    model = lambda: adapted(0.1, lora_dropout=0.2)
    whole = trained(tmp_path / "whole", settings, model(), **{**kwargs, "save_strategy": "no"}).model
    killed = build(tmp_path / "cut", settings, model(), build_kwargs={"callbacks": [KillAt(5)]}, **kwargs)
    with pytest.raises(Killed):
        killed.train()
    resumed = build(tmp_path / "cut", settings, model(), **kwargs)
    resumed.train(resume_from_checkpoint=True)
    assert same(state(resumed.model), state(whole))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_step_leaves_the_model_in_place(error: type[BaseException], tmp_path: Path) -> None:
    class Failing(SAMTrainer):
        calls = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            loss = super().compute_loss(*args, **kwargs)
            if self.calls == 6:  # the pass at the perturbed weight of the third step
                raise error
            return loss

    trainer = build(tmp_path, ARGUMENTS["sam"], adapted(), cls=Failing)
    with pytest.raises(error):
        trainer.train()
    assert not any(module._forward_hooks for module in trainer.model.modules())


@pytest.mark.parametrize("dtype", ["bfloat16", "autocast"])
def test_other_precisions(dtype: str, tmp_path: Path) -> None:
    model = adapted().bfloat16() if dtype == "bfloat16" else adapted()
    settings = dataclasses.replace(ARGUMENTS["s2sam"], diagnostics_steps=1)
    trainer = trained(tmp_path, settings, model, bf16=dtype == "autocast", logging_steps=1, logging_strategy="steps")
    logged = trainer.state.log_history[-2]
    assert logged["sam_rho"] == 0.3
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("bits", [4, 8])
def test_over_a_quantized_base(bits: int) -> None:
    """The same point as over the numbers that its codes stand for: nothing is asked of the base weight."""
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    cls = bnb.nn.Linear4bit if bits == 4 else functools.partial(bnb.nn.Linear8bitLt, has_fp16_weights=False)
    layer = cls(64, 96)
    layer.load_state_dict(nn.Linear(64, 96).state_dict())
    base: Any = nn.Sequential(layer.to("cpu"))
    setattr(base, f"is_loaded_in_{bits}bit", True)  # as transformers sets it
    model: Any = get_peft_model(base, LoraConfig(target_modules=["0"], r=4, init_lora_weights=False))
    assert f"Linear{bits}bit" in type(model.base_model.model[0]).__name__
    x, start = torch.randn(5, 64), state(model)
    opt = SAM([p for p in model.parameters() if p.requires_grad], torch.optim.SGD, rho=0.5, lr=0.1, merged=model)
    plain = model(x).square().sum()
    opt.perturb(lambda: model(x).square().sum())
    assert model(x).square().sum() > plain
    assert same(state(model), start)
    opt.restore()
    assert torch.equal(model(x).square().sum(), plain)


def test_a_model_without_such_layers_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no trainable adapter"):
        build(tmp_path, ARGUMENTS["sam"], bert())
    build(tmp_path, SAMArguments("sam", rho=0.0), bert())
