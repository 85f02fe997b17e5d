"""The card of everything that users save parses, is found by the Hub, and its loading lines run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from hf_efficient import BiDSTConfig, TokenPrunerConfig, attach_token_pruner, save_sparse
from hf_efficient.files.card import PLACE, is_ours
from hf_efficient.representation.evaluation.questions import TINY_VLM, load_vlm
from tests.optimization.training.trainers import bert


def loaded(folder: Path, **names: Any) -> dict[str, Any]:
    """Names after the card's Python has run, with the folder in its place."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 3
    exec(code.replace(PLACE, str(folder)), names)
    return names


def card(folder: Path) -> Any:
    found: Any = ModelCard.load(folder / "README.md")
    assert "hf_efficient" in found.data.tags
    return found


def test_a_pruned_folder(tmp_path: Path) -> None:
    model, processor = attach_token_pruner(*load_vlm(TINY_VLM), TokenPrunerConfig(budget=9))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = card(tmp_path)
    assert (found.data.library_name, found.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert loaded(tmp_path)["model"].token_pruner.config.budget == 9
    assert is_ours((tmp_path / "README.md").read_text())
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_sparse_model(tmp_path: Path) -> None:
    model = bert()
    torch.nn.init.zeros_(model.bert.encoder.layer[0].output.dense.weight)
    save_sparse(model, tmp_path)
    assert card(tmp_path).data.library_name == "hf_efficient"
    back = loaded(tmp_path)["model"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))


def test_a_sparse_adapter(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(bert(), BiDSTConfig(target="delta", sparsity=0.9))
    model.save_pretrained(str(tmp_path))
    model.save_pretrained(str(tmp_path))
    found = card(tmp_path)
    assert found.data.library_name == "peft"
    assert {"sparse-adapter", "bidst"} <= set(found.data.tags)
    assert found.text.count("### Sparse adapter") == 1
    assert loaded(tmp_path, model=bert())["model"].peft_config["default"].sparsity == pytest.approx(0.9)
