"""A report's numbers agree with closed forms, and measuring leaves everything as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_efficient import (
    BiDSTConfig,
    SAMArguments,
    SAMTrainer,
    TokenPrunerConfig,
    attach_token_pruner,
    compress,
    measure,
)
from hf_efficient.budget.memory import kept_for_backward, peak_bytes
from hf_efficient.budget.report import BudgetReport, readable
from tests import tiny

LABELLED = {"input_ids": torch.arange(24).view(2, 12), "labels": torch.arange(24).view(2, 12)}


def llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=50, **settings)  # fmt: skip
    return LlamaForCausalLM(config)


def trainer_of(model: nn.Module, folder: Path, sam: SAMArguments | None = None) -> Trainer:
    args = TrainingArguments(folder, report_to=[], use_cpu=True, optim="adamw_torch", max_steps=3)
    return Trainer(model, args) if sam is None else SAMTrainer(model, args, sam_args=sam)


def test_parameters_and_bytes_of_a_llama() -> None:
    model = llama()
    report = measure(model, {"input_ids": LABELLED["input_ids"]}, repeats=1)
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    total = 2 * 50 * 32 + 2 * layer + 32
    assert report.parameters.total == report.parameters.nonzero == report.parameters.trainable == total
    assert report.parameters.file_bytes == report.parameters.gradient_bytes == 4 * total
    assert report.parameters.optimizer_bytes is None
    assert report.optimization is None
    assert (
        report.representation.cache_bytes == 2 * 2 * (2 * 2 * 12 * 8) * 4
    )  # K and V, layers, (B, heads, length, width)
    assert report.representation.prompt_tokens == 24
    assert (report.representation.visual_tokens, report.representation.kept_tokens) == (0, 0)
    assert sum(m.parameters for m in report.modules) == total
    assert sum(m.flops for m in report.modules) == report.representation.prefill_flops


def test_tied_weights_count_once() -> None:
    tied, untied = (measure(llama(tie_word_embeddings=t), LABELLED, repeats=1).parameters for t in (True, False))
    assert untied.total - tied.total == 50 * 32
    assert untied.file_bytes - tied.file_bytes == untied.memory_bytes - tied.memory_bytes == 4 * 50 * 32


def test_a_sparse_adapter_counts_as_what_it_stands_for() -> None:
    model = get_peft_model(llama(), BiDSTConfig(sparsity=0.9, backend="dense", target_modules=["up_proj"]))
    sparse = measure(model, LABELLED, repeats=1)
    merged = measure(model.merge_and_unload(), LABELLED, repeats=1)
    assert sparse.parameters.total == merged.parameters.total
    assert sparse.parameters.nonzero == merged.parameters.nonzero
    assert sparse.representation.prefill_flops == merged.representation.prefill_flops
    assert sparse.representation.prefill_flops_nonzero == merged.representation.prefill_flops_nonzero
    assert merged.parameters.total - merged.parameters.nonzero == pytest.approx(0.9 * 2 * 32 * 64, rel=0.01)
    saved = merged.representation.prefill_flops - merged.representation.prefill_flops_nonzero
    assert saved == pytest.approx(0.9 * 2 * 2 * 24 * 32 * 64, rel=0.01)


def test_compressed_layers_store_and_multiply_what_is_not_zero() -> None:
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight[:, 4:] = 0
    dense = measure(nn.Sequential(layer), torch.randn(5, 40), repeats=1)
    sparse = measure(compress(nn.Sequential(layer), backend="csr"), torch.randn(5, 40), repeats=1)
    assert dense.parameters.total == sparse.parameters.total == 40 * 30 + 30
    assert dense.parameters.nonzero == sparse.parameters.nonzero == 4 * 30 + 30
    assert dense.representation.prefill_flops == 2 * 5 * 40 * 30
    assert dense.representation.prefill_flops_nonzero == 2 * 5 * 4 * 30
    assert sparse.representation.prefill_flops == sparse.representation.prefill_flops_nonzero == 2 * 5 * 4 * 30


def test_a_pruner_takes_tokens_from_the_prompt_and_the_cache() -> None:
    model, processor = tiny.stock("llava")
    inputs = processor(**tiny.prompts("llava", [[0]]))
    stock = measure(model, inputs, repeats=1)
    config = TokenPrunerConfig(method="id_pruner", budget=tiny.budget("llava"))
    model, processor = attach_token_pruner(model, processor, config)
    pruned = measure(model, processor(**tiny.prompts("llava", [[0]])), repeats=1)
    assert stock.representation.visual_tokens == stock.representation.kept_tokens == pruned.representation.visual_tokens
    assert pruned.representation.kept_tokens == tiny.budget("llava")
    assert pruned.representation.prefill_flops < stock.representation.prefill_flops
    gone = pruned.representation.visual_tokens - pruned.representation.kept_tokens
    each = stock.representation.cache_bytes // stock.representation.prompt_tokens
    assert stock.representation.cache_bytes - pruned.representation.cache_bytes == gone * each


@pytest.mark.parametrize(
    ("sam", "forward", "backward"),
    [
        (None, 1, 1),
        (SAMArguments(method="sam"), 2, 2),
        (SAMArguments(method="zosam"), 3, 1),
        (SAMArguments(method="s2sam"), 1, 1),
    ],
)
def test_a_step_of_a_trainer(tmp_path: Path, sam: SAMArguments | None, forward: int, backward: int) -> None:
    model = llama()
    trainer = trainer_of(model, tmp_path, sam)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    report = measure(model, LABELLED, trainer, repeats=1)
    step = report.optimization
    assert step is not None
    assert (step.forward_passes, step.backward_passes) == (forward, backward)
    assert step.seconds > 0
    assert step.peak_bytes > report.parameters.gradient_bytes
    assert 0 < step.activation_bytes < step.peak_bytes
    assert 0 <= report.parameters.optimizer_bytes - 2 * report.parameters.gradient_bytes < 1000  # type: ignore[operator]
    once = report.representation.prefill_flops
    assert step.flops == pytest.approx((forward + 2 * backward) * once, rel=0.05)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert trainer.optimizer is None


def test_a_trainers_own_optimizer_keeps_its_state(tmp_path: Path) -> None:
    trainer = trainer_of(llama(), tmp_path)
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, dict(LABELLED))
    optimizer.step()
    before = json.dumps({k: str(v) for k, v in optimizer.state_dict()["state"].items()})
    gradients = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    measure(trainer.model, LABELLED, trainer, repeats=1)
    assert trainer.optimizer is optimizer
    assert json.dumps({k: str(v) for k, v in optimizer.state_dict()["state"].items()}) == before
    after = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, after, strict=True))


def test_zeros_are_counted_before_steps_fill_them(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1:] = 0
    alone, trained = (measure(model, LABELLED, t, repeats=1) for t in (None, trainer_of(model, tmp_path)))
    assert trained.parameters.nonzero == alone.parameters.nonzero == trained.parameters.total - 63 * 32


def test_an_adapter_trains_few_values() -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    report = measure(model, LABELLED, repeats=1)
    assert report.parameters.trainable == 2 * 2 * (32 + 32)
    assert report.parameters.gradient_bytes == 4 * report.parameters.trainable


def test_kept_and_peak_bytes_of_known_tensors() -> None:
    layer, x = nn.Linear(100, 50), torch.randn(1000, 100)
    assert kept_for_backward(layer, lambda: layer(x)) == x.numel() * 4

    def run() -> None:
        first = torch.ones(1000, 1000)
        del first
        torch.ones(500, 1000)

    assert peak_bytes(run) == pytest.approx(4e6, rel=0.01)


def test_reports_are_written_and_read(tmp_path: Path) -> None:
    model = llama()
    before = measure(model, LABELLED, trainer_of(model, tmp_path), repeats=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1:] = 0
    now = measure(model, LABELLED, repeats=1)
    assert BudgetReport.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    with pytest.raises(ValueError, match="no report"):
        BudgetReport.from_dict({"parameters": {}})
    table = now.to_markdown(before, modules=3)
    assert "| parameters | of them not zero |" in table
    assert f"{now.parameters.nonzero / before.parameters.nonzero:.3g} |" in table
    assert "model.layers.*.mlp.up_proj | Linear | 2 |" in table
    for name, earlier in (("alone.png", None), ("both.png", before)):
        now.plot(tmp_path / name, earlier)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "B", "0 B"), (1536, "B", "1.54 kB"), (22.7e6, "", "22.7 M"), (3e9, "FLOP", "3 GFLOP"), (0.012, "s", "12 ms")],
)
def test_numbers_are_readable(value: float, unit: str, text: str) -> None:
    assert readable(value, unit) == text


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    model = llama()
    with pytest.raises(ValueError, match="another model"):
        measure(llama(), LABELLED, trainer_of(model, tmp_path))
    with pytest.raises(ValueError, match="repeats"):
        measure(model, LABELLED, repeats=0)
    with pytest.raises(ValueError, match="no weights"):
        measure(nn.ReLU(), torch.ones(2))
    with pytest.raises(TypeError, match="inputs is a list"):
        measure(model, [1, 2])


def test_a_step_of_looksam_is_the_mean_of_its_period(tmp_path: Path) -> None:
    """k = 4: one step of two passes, three of one."""
    found: dict[str | None, Any] = {}
    for sam in (None, SAMArguments("sam", rho=0.1), SAMArguments("looksam", rho=0.1, reuse_interval=4)):
        trainer = trainer_of(llama(), tmp_path, sam)
        report = measure(trainer.model, LABELLED, trainer, repeats=1)
        assert trainer.state.global_step == 0
        found[getattr(sam, "method", None)] = report.optimization
    assert found["looksam"].forward_passes == found["looksam"].backward_passes == 1.25
    assert found["looksam"].flops == pytest.approx((found["sam"].flops + 3 * found[None].flops) / 4, rel=0.01)


def test_zeros_in_stacks_of_experts_are_of_no_use() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                           num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    inputs = {"input_ids": torch.arange(12)[None]}
    before = measure(model, inputs, repeats=1).representation
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        for stack in experts.parameters():
            stack[:, ::2] = 0  # half of each expert's outputs
    now = measure(model, inputs, repeats=1).representation
    routed = 12 * config.num_experts_per_tok * 3 * 2 * 32 * 64  # three products for each token and chosen expert
    assert before.prefill_flops == before.prefill_flops_nonzero == now.prefill_flops
    assert now.prefill_flops - now.prefill_flops_nonzero == pytest.approx(routed / 2, rel=0.01)


def test_each_weight_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = llama(tie_word_embeddings=True), list[int]()
    count = torch.Tensor.count_nonzero

    def counted(self: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        read.append(self.data_ptr())
        return count(self, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "count_nonzero", counted)
        measure(model, {"input_ids": LABELLED["input_ids"]}, repeats=1)
    assert sorted(read) == sorted({weight.data_ptr() for weight in model.parameters()})
