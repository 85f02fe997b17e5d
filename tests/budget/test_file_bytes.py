"""Predicted bytes of a file against the tensors that are written, where layers are tied, skipped, or no linear ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from hf_efficient import EfficiencyPlan
from hf_efficient.budget.planner import bits
from hf_efficient.budget.planner.weights import WeightLevers, loaded_again
from tests.tiny import prompts, stock

TRANSFORMER = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
               "num_attention_heads": 4}  # fmt: skip
TEXT = [{"input_ids": torch.arange(1, 13)[None] * (i + 1) % 50} for i in range(3)]
#: Name -> class, what its config has, calibration batches.
MODELS: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "t5": ("T5ForConditionalGeneration",  # its products `wo` are kept in full, its embeddings shared
           {"vocab_size": 50, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0},
           [{**batch, "labels": batch["input_ids"]} for batch in TEXT]),
    "bert": ("BertForSequenceClassification", TRANSFORMER, TEXT),  # its pooler is quantized, its classifier is not
    "bert_lm": ("BertForMaskedLM", TRANSFORMER, TEXT),  # the head is tied
    "llama_tied": ("LlamaForCausalLM", {**TRANSFORMER, "tie_word_embeddings": True}, TEXT),
    "gpt2": ("GPT2LMHeadModel",  # Conv1D
             {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
              "eos_token_id": 2}, TEXT),
    "vit": ("ViTForImageClassification", {**TRANSFORMER, "image_size": 32, "patch_size": 8},
            [{"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}]),
    "mixtral": ("MixtralForCausalLM",  # experts as stacks, which neither lever changes
                {**TRANSFORMER, "num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 64}, TEXT),
}  # fmt: skip


def made(name: str) -> tuple[Any, list[Any]]:
    """A model whose biases are not all zero, and batches for it."""
    if name == "llava":
        model, processor = stock("llava")
        return model, [dict(processor(**prompts("llava", [[i]]))) for i in range(2)]
    cls, settings, batches = MODELS[name]
    torch.manual_seed(0)
    model_class = getattr(transformers, cls)
    model = model_class(model_class.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model, batches


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in a folder's files, their headers left out."""
    found = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found += sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118  not a dict
    return found


@pytest.mark.parametrize("name", [*MODELS, "llava"])
def test_bytes_with_fewer_bits(name: str, tmp_path: Path) -> None:
    model, _ = made(name)
    levers = WeightLevers(model, ["int8", "int4"])
    assert levers.unchanged_bytes() < levers.least_file() < levers.stock.file_bytes
    for lever in levers.bits:
        weights = levers.quantized(lever)
        assert weights.precision is not None
        loaded_again(model, weights.precision).save_pretrained(tmp_path / lever)
        assert weights.file_bytes == pytest.approx(tensor_bytes(tmp_path / lever), rel=0.01), lever


@pytest.mark.parametrize("name", [*MODELS, "llava"])
def test_bytes_with_zeros(name: str, tmp_path: Path) -> None:
    model, batches = made(name)
    for sparsity in (0.5, 0.9):
        levers = WeightLevers(model, ["wanda"])
        weights = levers.pruned("wanda", sparsity)
        EfficiencyPlan(pruning=weights.pruning).save_pretrained(tmp_path, levers.applied(weights, batches))
        assert weights.file_bytes == pytest.approx(tensor_bytes(tmp_path), rel=0.05), sparsity


def test_half_precision_with_fewer_bits(tmp_path: Path) -> None:
    model = made("llama_tied")[0].to(torch.bfloat16)
    levers = WeightLevers(model, ["int8", "int4"])
    for lever in levers.bits:
        precision: Any = levers.quantized(lever).precision
        loaded_again(model, precision).save_pretrained(tmp_path / lever)
        assert levers.quantized(lever).file_bytes == pytest.approx(tensor_bytes(tmp_path / lever), rel=0.01), lever


def test_a_model_that_transformers_does_not_load_has_no_bits() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(8, 8))
    levers = WeightLevers(plain, ["int8", "int4", "wanda"])
    assert not levers.bits
    assert levers.pruners == ["wanda"]


def test_asking_the_quantizer_leaves_the_model_as_it_was() -> None:
    model, _ = made("t5")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    WeightLevers(model, ["int8"]).quantized("int8")
    assert all(type(module).__module__.split(".")[0] != "bitsandbytes" for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not getattr(model, "is_quantized", False)
    assert model.shared.weight is model.encoder.embed_tokens.weight


@pytest.mark.slow
def test_torchao_where_bitsandbytes_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    find_spec = bits.find_spec
    monkeypatch.setattr(bits, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    for dtype in (torch.float32, torch.bfloat16):
        model = made("llama_tied")[0].to(dtype)
        levers = WeightLevers(model, ["int8", "int4"])
        assert list(levers.bits) == ["int8"]
        weights = levers.quantized("int8")
        assert weights.precision is not None
        assert weights.precision["quant_method"] == "torchao"
        folder = tmp_path / str(dtype)
        again = loaded_again(model, weights.precision)
        EfficiencyPlan(precision=weights.precision).save_pretrained(folder, again)
        assert weights.file_bytes == pytest.approx(tensor_bytes(folder), rel=0.01)
        loaded, _ = EfficiencyPlan.load(folder)
        with torch.no_grad():
            assert torch.equal(loaded(**TEXT[0]).logits, again(**TEXT[0]).logits)
            whole = model(**TEXT[0]).logits.float()
            assert (again(**TEXT[0]).logits.float() - whole).norm() < 0.05 * whole.norm()
