"""Embeddings that a head or other embeddings share, when everything that is not sparse trains too."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_efficient import BiDSTConfig, load_sparse, save_sparse
from tests.sparsity.models import IDS, gpt2, llama


def bert_mlm() -> BertForMaskedLM:
    """Its head has a bias."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    return BertForMaskedLM(config).eval()


def t5() -> T5ForConditionalGeneration:
    """Three embeddings and the head are one tensor."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=0, dropout_rate=0
    )
    return T5ForConditionalGeneration(config).eval()


def whisper() -> WhisperForConditionalGeneration:
    """Its head has a name of its own, `proj_out`."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, num_mel_bins=8, encoder_layers=1, encoder_attention_heads=4, decoder_layers=1,
        decoder_attention_heads=4, decoder_ffn_dim=48, encoder_ffn_dim=48, d_model=32, max_source_positions=8,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, dropout=0.0,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def inputs(model: Any) -> dict[str, Tensor]:
    if "Whisper" in type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__:
        return {"input_features": torch.ones(2, 8, 16), "labels": IDS}
    return {"input_ids": IDS, "labels": IDS}


def trained(model: PreTrainedModel) -> Any:
    adapted = get_peft_model(model, BiDSTConfig(sparsity=0.5))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], 1e-2)
    for _ in range(3):
        adapted(**inputs(adapted)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


def tie(model: Any) -> tuple[Tensor, Tensor]:
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@pytest.mark.parametrize("make", [lambda: llama(tied=True), gpt2, whisper], ids=["llama", "gpt2", "whisper"])
def test_a_tied_head_trains_with_its_embedding(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = trained(make())
        embedding, head = tie(model.get_base_model())
        assert torch.equal(embedding, head)
        assert not torch.equal(embedding, tie(make())[0])
        with torch.no_grad():
            expected = model(**inputs(model)).logits
            model.save_pretrained(str(tmp_path))
            again = PeftModel.from_pretrained(make(), str(tmp_path)).eval()
            assert torch.equal(again(**inputs(model)).logits, expected)
            merged = model.merge_and_unload()
        assert merged.config.tie_word_embeddings
    embedding, head = tie(merged)
    assert embedding.data_ptr() == head.data_ptr()
    assert torch.equal(merged(**inputs(merged)).logits, expected)


@pytest.mark.parametrize("make", [t5, bert_mlm])
def test_what_cannot_be_trained_as_one_stays_frozen_and_tied(make: Any, tmp_path: Path) -> None:
    """PEFT ties heads without a bias alone."""
    with pytest.warns(UserWarning, match=r"(shared|word_embeddings)'.*stay as they are.*tie_word_embeddings"):
        model = trained(make())
    with torch.no_grad():
        expected = model(**inputs(model)).logits
        merged = model.merge_and_unload()
        assert merged.config.tie_word_embeddings
        embedding, head = tie(merged)
        assert embedding.data_ptr() == head.data_ptr()
        assert torch.equal(embedding, tie(make())[0])
        save_sparse(merged, tmp_path)
        assert torch.equal(load_sparse(tmp_path).eval()(**inputs(merged)).logits, expected)


def test_a_head_that_is_an_embedding_is_no_default_target() -> None:
    targets = get_peft_model(whisper(), BiDSTConfig(sparsity=0.5)).peft_config["default"].target_modules
    assert targets
    assert not any("proj_out" in name for name in targets)
