"""The classification examples run as their pages say, on a few rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(script: str, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    path = Path(__file__).parents[2] / "examples" / script
    subprocess.run([sys.executable, str(path), *arguments], check=True, env=environment)


def common(folder: Path) -> list[str]:
    return ["--output_dir", str(folder), "--max_steps", "3", "--per_device_train_batch_size", "4", "--use_cpu", "true",
            "--save_strategy", "no", "--report_to", "none"]  # fmt: skip


@pytest.mark.slow
def test_text(tmp_path: Path) -> None:
    from tests.optimization.trainers import bert

    words = [f"w{i}" for i in range(45)]
    model = tmp_path / "model"
    bert().save_pretrained(model)
    (model / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    rows = "\n".join(f"{words[i % 40]} {words[i % 7]},{'good' if i % 2 else 'bad'}" for i in range(24))
    (tmp_path / "data.csv").write_text(f"text,label\n{rows}\n")
    run("text_classification.py", *common(tmp_path / "out"), "--train_file", str(tmp_path / "data.csv"),
        "--max_length", "8", "--model_name_or_path", str(model), "--method", "zosam", "--guided")  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- method: zosam" in card
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}


@pytest.mark.slow
def test_images(tmp_path: Path) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
    run("image_classification.py", *common(tmp_path / "out"), "--method", "s2sam", "--label_noise", "0.4",
        "--max_train_samples", "40", "--max_test_samples", "40")  # fmt: skip
    assert "- method: s2sam" in (tmp_path / "out" / "README.md").read_text()
