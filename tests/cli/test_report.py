"""`hf-efficient report`."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from hf_efficient.budget.report import BudgetReport
from hf_efficient.cli import main
from tests.cli.shell import error_of
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
    assert main(["report", model, "--json", "-"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"now"}


def test_a_saved_pruner_is_compared_with_the_stock_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned = str(tmp_path / "pruned")
    assert main(["prune", save_vlm(tmp_path / "vlm"), pruned, "--budget", "9", "--method", "itg"]) == 0
    for options, kept in (([], 9), (["--budget", "4"], 4)):
        capsys.readouterr()
        assert main(["report", pruned, "--json", "-", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        now, before = (BudgetReport.from_dict(found[name]).representation for name in ("now", "before"))
        assert (now.kept_tokens, before.kept_tokens) == (kept, before.visual_tokens)


def test_a_text_model_has_one_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", text_model(tmp_path / "bert"), "--text", "w1 w2", "--rows", "0"]) == 0
    out = capsys.readouterr().out
    assert "| budget |  | value |" in out
    assert "visual tokens encoded | 0 |" in out
    assert "module" not in out


def test_the_saved_model_is_measured_with_its_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer(["<s>"])
    size = len(tokenizer)
    models = [
        GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0)),
        T5ForConditionalGeneration(
            T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
        ),
    ]
    for i, model in enumerate(models):
        folder, numbers = tmp_path / str(i), tmp_path / "n.json"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert main(["report", str(folder), "--text", "w1 w2", "--json", str(numbers)]) == 0
        found = BudgetReport.from_dict(json.loads(numbers.read_text())["now"])
        rows = 2 if i == 0 else 1  # one token of a decoder
        assert {m.name: m.flops for m in found.modules}["lm_head"] == 2 * rows * 32 * size
        assert found.representation.cache_bytes > 0


def test_wrong_arguments_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = text_model(tmp_path / "bert")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        assert main(["report", model, "--plot", str(tmp_path / "x.png")]) == 2
    printed = capsys.readouterr()
    assert "pip install 'hf-efficient[plots]'" in printed.err
    assert not printed.out
    for option in ("--json", "--plot"):
        assert main(["report", model, option, str(tmp_path / "nowhere" / "x")]) == 2
        printed = capsys.readouterr()
        assert "nowhere" in printed.err
        assert not printed.out
    assert main(["report", model, "--text", ""]) == 2
    assert "has no tokens" in capsys.readouterr().err
    assert main(["report", model, "--image", "x.png"]) == 2
    assert "--image x.png is for models that see" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", model, "--rows", "-3"])
    assert "'-3' is not a whole number >= 0" in capsys.readouterr().err


def test_pictures_are_for_models_that_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = text_model(tmp_path / "bert")
    assert main(["report", model, "--budget", "9"]) == 2
    assert "reads text alone" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    for command in (["report", "oak"], ["plan", "oak", str(tmp_path / "p"), "--limit", "file_bytes=1MB"]):
        assert "'oak' is missing: there is no such folder" in error_of(capsys, *command)
