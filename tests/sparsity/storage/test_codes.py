"""Models quantized to codes are refused by sparse checkpoints, before a file is there."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from hf_efficient import load_sparse, save_sparse


def test_a_quantized_model_is_refused_before_a_file_is_there(tmp_path: Path) -> None:
    """Its codes and their scales were stored, and could not be loaded."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    bits = BitsAndBytesConfig(load_in_4bit=True)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=bits)
    with pytest.raises(ValueError, match=r"are quantized to codes.*save_pretrained"):
        save_sparse(model, tmp_path / "sparse")
    assert not (tmp_path / "sparse").exists()


def test_what_torch_quantized_in_its_old_way_is_refused_before_a_file_is_there(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that these are old
        coded = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    with pytest.raises(ValueError, match=r"'0._packed_params.*expected a tensor of numbers.*before it is quantized"):
        save_sparse(coded, tmp_path / "coded")
    assert not (tmp_path / "coded").exists()
    save_sparse(plain, tmp_path)
    with pytest.raises(ValueError, match=r"'0._packed_params.*expected a tensor of numbers"):
        load_sparse(tmp_path, coded)


def test_codes_of_torch_in_a_buffer_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.register_buffer("codes", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    with pytest.raises(ValueError, match=r"'codes' of the Linear is a tensor of codes, expected a tensor of numbers"):
        save_sparse(model, tmp_path)


@pytest.mark.parametrize(
    ("buffer", "kind"),
    [(torch.ones(2, dtype=torch.complex128), "complex128"), (torch.eye(2).to_sparse(), "sparse_coo")],
    ids=["complex128", "sparse"],
)
def test_tensors_that_files_do_not_hold_are_named(buffer: Tensor, kind: str, tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("given", buffer)
    with pytest.raises(ValueError, match=rf"'given' of the Linear is a {kind} tensor, expected"):
        save_sparse(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_one_number_of_a_longer_row_is_stored(tmp_path: Path) -> None:
    """Torch calls it contiguous, whatever its stride."""
    model = nn.Linear(2, 2)
    model.register_buffer("one", torch.arange(1.0, 5.0)[::2][1:])
    save_sparse(model, tmp_path)
    other = nn.Linear(2, 2)
    other.register_buffer("one", torch.zeros(1))
    assert torch.equal(load_sparse(tmp_path, other).one, torch.tensor([3.0]))
