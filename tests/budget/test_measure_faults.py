"""Measuring inside a training changes nothing of it; and what is unusual is counted right, or refused."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

from hf_efficient import BiDSTConfig, SAMArguments, SAMTrainer, measure
from tests.budget.test_measure import LABELLED, llama, trainer_of

ROWS = [{name: (torch.arange(12) * (i + 1)) % 50 for name in ("input_ids", "labels")} for i in range(4)]


class Measuring(TrainerCallback):
    """Measures at the end of each step, or within it."""

    def __init__(self, within: bool = False) -> None:
        self.trainer: Any = None
        self.within = within
        self.reports: list[Any] = []

    def _measure(self) -> None:
        attributes = dict(vars(self.trainer))
        self.reports.append(measure(self.trainer.model, LABELLED, self.trainer, repeats=1))
        assert vars(self.trainer) == attributes

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer is not None and not self.within:
            self._measure()

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer is not None and self.within:
            self._measure()


def trained(folder: Path, sam: SAMArguments | None, look: Measuring | None, **more: Any) -> dict[str, torch.Tensor]:
    """Weights after four steps, measured in between or not."""
    args = TrainingArguments(
        folder, report_to=[], use_cpu=True, max_steps=4, learning_rate=1e-2, per_device_train_batch_size=1,
        save_strategy="no", disable_tqdm=True, **more,
    )  # fmt: skip
    callbacks: Any = [] if look is None else [look]
    model = llama()
    if sam is None:
        trainer = Trainer(model.bfloat16(), args, train_dataset=ROWS, callbacks=callbacks)
    else:
        trainer = SAMTrainer(model, args, sam_args=sam, train_dataset=ROWS, callbacks=callbacks)
    if look is not None:
        look.trainer = trainer
    trainer.train()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("sam", "more"),
    [
        (SAMArguments("s2sam"), {}),
        (SAMArguments("looksam", reuse_interval=5), {}),
        (SAMArguments("msam"), {"gradient_accumulation_steps": 2}),
        (SAMArguments("zosam", guided=True), {}),
        (None, {"optim": "adafactor"}),  # of 16-bit weights it keeps a state in 32 bits
    ],
)
def test_a_training_that_is_measured_goes_on_bit_for_bit(
    tmp_path: Path, sam: SAMArguments | None, more: dict[str, Any]
) -> None:
    look = Measuring("gradient_accumulation_steps" in more)
    alone = trained(tmp_path, sam, None, **more)
    measured = trained(tmp_path, sam, look, **more)
    each = 1 if sam is None or sam.method != "looksam" else 1.2  # two passes in every fifth step
    assert [report.optimization.backward_passes for report in look.reports] == [each] * 4
    assert all(torch.equal(value, alone[name]) for name, value in measured.items())


def test_random_numbers_are_kept_without_a_trainer() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn(3) + random.random() + np.random.rand())

    model, x = Noisy(3, 3), torch.ones(2, 3)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    measure(model, x, repeats=1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))


def test_activations_are_those_of_the_trainers_dtype(tmp_path: Path) -> None:
    def kept(**more: Any) -> int:
        args = TrainingArguments(tmp_path, report_to=[], use_cpu=True, **more)
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
        loss: Any = lambda output, labels, num_items_in_batch=None: output.float().square().mean()

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
                return {"loss": loss(self.model(x), labels)}

        made = Model()
        step = measure(made, {"x": torch.ones(512, 64)}, Trainer(made, args), repeats=1).optimization
        assert step is not None
        return step.activation_bytes

    assert kept(bf16=True) < 0.8 * kept()


def test_activations_are_recomputed_if_the_trainer_says_so(tmp_path: Path) -> None:
    model = llama()
    plain = measure(model, LABELLED, trainer_of(model, tmp_path), repeats=1).optimization
    args = TrainingArguments(tmp_path, report_to=[], use_cpu=True, gradient_checkpointing=True)
    recomputed = measure(model, LABELLED, Trainer(model, args), repeats=1).optimization
    assert plain is not None
    assert recomputed is not None
    assert recomputed.activation_bytes < plain.activation_bytes / 2
    assert recomputed.flops > plain.flops
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert "forward" not in vars(model)


def test_cache_of_an_encoder_and_decoder() -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    )
    ids = torch.arange(24).view(2, 12)
    report = measure(model, {"input_ids": ids, "decoder_input_ids": ids[:, :5].contiguous()}, repeats=1)
    assert report.representation.cache_bytes == 2 * 2 * 2 * (5 + 12) * 32 * 4  # K and V, layers, rows; self and cross


def test_products_inside_fused_layers_count() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    found = measure(layer, torch.randn(2, 5, 16), repeats=1).representation.prefill_flops
    assert found == 2 * 2 * (5 * 4 * 16 * 16 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 32)
    assert torch.backends.mha.get_fastpath_enabled()
    found = measure(nn.LSTM(6, 8, num_layers=2), torch.randn(7, 3, 6), repeats=1).representation.prefill_flops
    assert found == 2 * 7 * 3 * 4 * 8 * ((6 + 8) + (8 + 8))


def test_bytes_of_weights_in_one_storage() -> None:
    flat = torch.randn(20)
    model = nn.Module()
    model.first, model.second, model.again = (nn.Parameter(t) for t in (flat[:10], flat[10:], flat[10:]))
    model.register_buffer("wide", torch.zeros(1).expand(1000))
    model.forward = lambda x: x  # type: ignore[method-assign]
    report = measure(model, torch.ones(1), repeats=1)
    assert report.parameters.memory_bytes == 4 * 20 + 4


def test_a_file_of_an_adapter_holds_the_adapter() -> None:
    for config in (LoraConfig(r=2, target_modules=["q_proj"]), BiDSTConfig(sparsity=0.9, target_modules=["q_proj"])):
        model = get_peft_model(llama(), config)
        saved = sum(t.numel() * t.element_size() for t in get_peft_model_state_dict(model).values())
        assert measure(model, LABELLED, repeats=1).parameters.file_bytes == saved


def test_a_module_that_is_trained_as_a_copy_counts_once_also_if_it_is_tied() -> None:
    model = llama(tie_word_embeddings=True)
    stock = measure(model, LABELLED, repeats=1).parameters
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    low_rank = 2 * 2 * (32 + 32)
    assert measure(model, LABELLED, repeats=1).parameters.total == stock.total + 50 * 32 + low_rank
    with model.disable_adapter():
        assert measure(model, LABELLED, repeats=1).parameters.total == stock.total + low_rank


@pytest.mark.parametrize("target", ["delta", "weight"])
def test_a_sparse_adapter_that_is_merged_or_off(target: str) -> None:
    stock = measure(llama(), LABELLED, repeats=1)
    config = BiDSTConfig(sparsity=0.9, target=target, target_modules=["up_proj", "q_proj"])
    model = get_peft_model(llama(), config)
    on = measure(model, LABELLED, repeats=1)
    model.merge_adapter()
    merged = measure(model, LABELLED, repeats=1)
    assert merged.parameters.total == stock.parameters.total
    assert merged.parameters.nonzero == on.parameters.nonzero
    assert merged.representation.prefill_flops_nonzero == on.representation.prefill_flops_nonzero
    model.unmerge_adapter()
    if target == "weight":
        with model.disable_adapter():
            off = measure(model, LABELLED, repeats=1)
        assert (off.parameters.total, off.parameters.nonzero) == (stock.parameters.total, stock.parameters.nonzero)
        assert off.representation.prefill_flops_nonzero == stock.representation.prefill_flops_nonzero


def test_eight_bit_floats_are_counted() -> None:
    layer = nn.Linear(4, 4)
    layer.codes = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]).to(torch.float8_e4m3fn), requires_grad=False)
    assert measure(layer, torch.ones(1, 4), repeats=1).parameters.nonzero == 20 + 2


def test_unusual_inputs_are_refused(tmp_path: Path) -> None:
    model = llama().eval()
    cache = model(**LABELLED).past_key_values
    with pytest.raises(ValueError, match="past_key_values"):
        measure(model, {**LABELLED, "past_key_values": cache})
    assert cache.get_seq_length() == 12
    with pytest.raises(ValueError, match="inputs is a tensor"):
        measure(model, LABELLED["input_ids"], trainer_of(model, tmp_path))
    with torch.device("meta"):
        empty = nn.Linear(3, 4)
    with pytest.raises(ValueError, match="meta"):
        measure(empty, torch.ones(1, 3))
