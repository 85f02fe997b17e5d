"""`hf-efficient report`."""

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import BertConfig, BertModel

from hf_efficient.budget.report import BudgetReport
from hf_efficient.cli import main
from tests.scene_vlm import save_vlm
from tests.tiny_models import make_tokenizer


def text_model(folder: Path) -> str:
    """A tiny encoder of texts with its tokenizer."""
    tokenizer = make_tokenizer(["<s>"])
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=64)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_pruner_is_compared_with_the_stock_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, picture, numbers, plot = (
        save_vlm(tmp_path / "vlm"),
        tmp_path / "x.png",
        tmp_path / "n.json",
        tmp_path / "p.png",
    )
    Image.new("RGB", (96, 96), "red").save(picture)
    options = ["--image", str(picture), "--json", str(numbers), "--plot", str(plot), "--method", "itg"]
    assert main(["report", model, "--budget", "9", *options]) == 0
    out = capsys.readouterr().out
    found = {name: BudgetReport.from_dict(content) for name, content in json.loads(numbers.read_text()).items()}
    before, now = found["before"].representation, found["now"].representation
    assert (before.kept_tokens, now.kept_tokens) == (before.visual_tokens, 9)
    assert before.prompt_tokens - now.prompt_tokens == before.visual_tokens - 9
    assert f"| visual tokens in the prompt | {before.visual_tokens} | 9 |" in out
    assert "vision_tower" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_text_model_has_one_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", text_model(tmp_path / "bert"), "--text", "w1 w2", "--rows", "0"]) == 0
    out = capsys.readouterr().out
    assert "| budget |  | value |" in out
    assert "visual tokens encoded | 0 |" in out
    assert "module" not in out


def test_pictures_are_for_models_that_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = text_model(tmp_path / "bert")
    assert main(["report", model, "--budget", "9"]) == 2
    assert "reads text alone" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
