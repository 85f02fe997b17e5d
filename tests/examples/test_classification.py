"""The classification examples run as their pages say, on a few rows."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def run(script: str, *arguments: str, processes: int = 1) -> None:
    """In one process, or in several under `accelerate launch` (gloo on the CPU; its option is named for GPUs)."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", port]
    command += ["-m", f"examples.{script}", *arguments]
    subprocess.run(command, check=True, env=environment)


def common(folder: Path, batch: int = 4) -> list[str]:
    return ["--output_dir", str(folder), "--max_steps", "3", "--per_device_train_batch_size", str(batch),
            "--use_cpu", "true", "--save_strategy", "no", "--report_to", "none"]  # fmt: skip


def text_data(tmp_path: Path) -> list[str]:
    """Arguments for a tiny model without dropout and a file of texts, both in the folder."""
    from tests.optimization.training.trainers import bert

    words = [f"w{i}" for i in range(45)]
    model = tmp_path / "model"
    bert(0.0).save_pretrained(model)
    (model / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    rows = "\n".join(f"{words[i % 40]} {words[i % 7]},{'good' if i % 2 else 'bad'}" for i in range(24))
    (tmp_path / "data.csv").write_text(f"text,label\n{rows}\n")
    return ["--train_file", str(tmp_path / "data.csv"), "--max_length", "8", "--model_name_or_path", str(model)]


@pytest.mark.slow
def test_text(tmp_path: Path) -> None:
    data = text_data(tmp_path)
    run("text_classification", *common(tmp_path / "out"), *data, "--method", "zosam", "--guided")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- method: zosam" in card
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}


@pytest.mark.slow
def test_images(tmp_path: Path) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
    run("image_classification", *common(tmp_path / "out"), "--method", "s2sam", "--label_noise", "0.4",
        "--max_train_samples", "40", "--max_test_samples", "40")  # fmt: skip
    assert "- method: s2sam" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_two_processes_under_accelerate_launch(tmp_path: Path) -> None:
    data = [*text_data(tmp_path), "--method", "s2sam", "--rho", "0.5", "--optim", "sgd", "--learning_rate", "0.1"]
    run("text_classification", *common(tmp_path / "out"), *data, processes=2)
    trained, start = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "model"))
    moved = [not torch.equal(trained[name], start[name]) for name in trained if name.startswith("bert.encoder")]
    assert all(moved)
    assert all(torch.isfinite(value).all() for value in trained.values())
    assert "- method: s2sam" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_images_under_accelerate_launch(tmp_path: Path) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").exists():
        pytest.skip("Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
    run("image_classification", *common(tmp_path / "out"), "--method", "sam", "--max_train_samples", "40",
        "--max_test_samples", "40", processes=2)  # fmt: skip
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "- method: sam" in (tmp_path / "out" / "README.md").read_text()
