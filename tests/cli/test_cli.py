"""The commands as a user runs them."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

import hf_efficient
from hf_efficient.cli import build_parser, main
from hf_efficient.representation.evaluation.questions import TINY_VLM
from tests.conftest import ROOT
from tests.scene_vlm import make_scene_vlm, make_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes") / "set", scenes=5)


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr of a command that fails with exit code 2."""
    try:
        code: object = main(arguments)
    except SystemExit as exit:  # argparse
        code = exit.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


def test_env_prints_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    import transformers

    assert main(["env"]) == 0
    lines = dict(re.findall(r"^- ([^:]+): (.+)$", capsys.readouterr().out, re.MULTILINE))
    assert lines["hf_efficient"] == hf_efficient.__version__
    assert lines["transformers"] == transformers.__version__
    assert torch.__version__.startswith(lines["torch"])
    assert lines["accelerator"] == "none" or torch.accelerator.is_available()
    for name in ("peft", "accelerate", "trl", "diffusers", "av", "datasets"):
        assert lines[name] == version(name)
    for name in ("bitsandbytes", "evaluate", "flash-attn"):
        assert lines[name] == "not installed" or lines[name] == version(name)
    assert lines["threads"].startswith(f"{torch.get_num_threads()}, ")
    assert "math" in lines["attention kernels"]
    import av

    assert lines["FFmpeg"] == av.ffmpeg_version_info


def test_env_imports_little() -> None:
    """Versions are read from what is installed: none of these libraries, each seconds to import, is imported."""
    code = (
        "import sys; from hf_efficient.cli import main; main(['env']);"
        "print(sorted({'transformers', 'peft', 'diffusers', 'trl', 'gradio', 'accelerate'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.endswith("\n[]\n")


def test_prune_saves_a_model_that_comes_back_pruned(
    vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["prune", str(vlm), str(out), "--method", "divprune", "--budget", "20", "--importance", "norm"]) == 0
    assert str(out) in capsys.readouterr().out
    config = hf_efficient.TokenPrunerConfig.from_pretrained(out)
    assert (config.method, config.budget, config.importance) == ("divprune", 20, "norm")
    _, processor = hf_efficient.load_token_pruned(out)
    ids = processor(images=Image.new("RGB", (96, 96)), text="<image> list all .", return_tensors="pt")["input_ids"]
    assert (ids == processor.image_token_id).sum() == 20
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]


def test_budget_keeps_a_count_and_a_share_apart(vlm: Path, tmp_path: Path) -> None:
    for text, value in (("1", 1), ("1.0", 1.0)):
        assert main(["prune", str(vlm), str(tmp_path / text), "--budget", text]) == 0
        budget = hf_efficient.TokenPrunerConfig.from_pretrained(tmp_path / text).budget
        assert (budget, type(budget)) == (value, type(value))


def test_settings_of_every_type_reach_the_config(vlm: Path, tmp_path: Path) -> None:
    options = "--method itg --proportional-attention no --llm-layers 1 2 --lloyd-steps 4 --question-weight 0.5"
    assert main(["prune", str(vlm), str(tmp_path / "out"), *options.split()]) == 0
    assert hf_efficient.TokenPrunerConfig.from_pretrained(tmp_path / "out") == hf_efficient.TokenPrunerConfig(
        method="itg", proportional_attention=False, llm_layers=[1, 2], lloyd_steps=4, question_weight=0.5
    )


def test_a_number_that_may_be_left_out_is_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_parser().parse_args(["prune", "a", "b", "--merge-copies", "0.0"]).merge_copies == 0.0
    assert build_parser().parse_args(["prune", "a", "b", "--merge-copies", "4/255"]).merge_copies == 4 / 255
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    assert re.search(r"--merge-copies VALUE\s[^()]*\(0.0:\s+exact\)\.\s+\(default:\s+off\)", capsys.readouterr().out)


def test_demo_writes_table_figures_and_images(
    vlm: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    command = f"demo --model {vlm} --data {scenes} --output {out} --budgets 36 0.1 --scenes 4 --draw 2 --batch-size 5"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [row["budget"] for row in results["rows"]] == [None, 36, 0.1]
    assert [row["visual_tokens"] for row in results["rows"]] == [144, 36, 14]
    stock, *others = results["rows"]
    assert stock["prefill_ratio"] == 1.0
    for row in others:
        saved = 2 * 4 * 6 * 32 * 4 * (144 - row["visual_tokens"])  # keys and values, layers, heads, width, float32
        assert stock["kv_cache_bytes"] - row["kv_cache_bytes"] == saved
        assert set(row["family_accuracy"]) == {"at", "exists", "list"}
    assert "12 questions about 4 images" in printed
    assert re.search(r"^ +36 +36 +\d", printed, re.MULTILINE)
    pages = sorted(out.glob("kept_tokens_*.png"))
    assert len(pages) == 2
    with Image.open(pages[0]) as page:
        assert page.size[0] > 3 * 384
        assert page.size[1] > 384


def test_demo_keep_all_answers_as_stock(vlm: Path, scenes: Path, tmp_path: Path) -> None:
    """Of a random model nothing is right but what its own stock answers make right."""
    from hf_efficient.representation.evaluation.questions import answer_questions, load_evaluation_set

    own = make_scenes(tmp_path / "own", scenes=3, seed=1)
    model, processor = make_scene_vlm()
    lines = []
    for scene in load_evaluation_set(own):
        asked = [question.question for question in scene.questions]
        replies = answer_questions(model, processor, [scene.image] * len(asked), asked, max_new_tokens=8)
        entries = [{"question": q, "answer": a, "family": "own"} for q, a in zip(asked, replies)]
        lines.append(json.dumps({"file_name": scene.name, "questions": entries}))
    (own / "metadata.jsonl").write_text("\n".join(lines))
    out = tmp_path / "demo"
    assert main(f"demo --model {vlm} --data {own} --output {out} --budgets 1.0 --draw 1".split()) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["accuracy"] for row in rows] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "command"),
        ("dance", "invalid choice: 'dance'"),
        ("demo --budgets many", "'many' is neither a number of tokens nor a share of them"),
        ("demo --budgets 2.5", "--budgets 2.5 is not a share"),
        ("demo --scenes 0", "'0' is not a whole number >= 1"),
        ("demo --method best", "invalid choice: 'best' (choose from 'id_pruner', 'random'"),
        ("demo --data {tmp}", "metadata.jsonl"),
        ("demo --model {tmp}", "config.json"),
        ("demo --model {tmp}/gone", "gone"),
        ("prune {vlm}", "output"),
        ("prune {vlm} {tmp}/out --proportional-attention perhaps", "'perhaps' is neither yes nor no"),
        ("prune {vlm} {vlm}", "in use"),
        ("prune {tmp}/gone {tmp}/out", "gone"),
        ("prune {vlm} {tmp}/out --budget 0", "--budget 0 keeps nothing"),
        ("prune {vlm} {tmp}/out --question-weight 2", "--question-weight 2.0 is out of range"),
        ("prune {vlm} {tmp}/out --method dart --lloyd-steps 5", "--lloyd-steps 5 is not read by --method dart"),
        ("demo --method tome --question-weight 0.5", "--question-weight 0.5 is not read by --method tome"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: str, message: str, vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = arguments.format(vlm=vlm, tmp=tmp_path)
    assert message in error_of(capsys, filled.split())
    assert not (tmp_path / "out").exists()


def test_an_unsupported_family_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor, ViTImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 100, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8})
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    _, processor = make_scene_vlm()
    BlipProcessor(ViTImageProcessor(), processor.tokenizer).save_pretrained(tmp_path / "blip")
    error = error_of(capsys, ["prune", str(tmp_path / "blip"), str(tmp_path / "out")])
    assert "blip" in error
    assert "llava" in error


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["--debug", "prune", str(tmp_path), str(tmp_path / "out")])


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_efficient.cli.env.run", stop)
    assert main(["env"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.slow
@pytest.mark.skipif(not TINY_VLM.is_dir(), reason="the shipped model is not in this checkout")
def test_demo_of_the_shipped_model(tmp_path: Path) -> None:
    assert main(["demo", "--output", str(tmp_path), "--scenes", "48"]) == 0
    stock, *pruned = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert stock["accuracy"] >= 0.9
    assert pruned[0]["accuracy"] >= stock["accuracy"] - 0.1, "half of the tokens answer nearly as well"
    cache = [row["kv_cache_bytes"] for row in (stock, *pruned)]
    assert cache == sorted(cache, reverse=True)


@pytest.mark.slow
@pytest.mark.skipif(not TINY_VLM.is_dir(), reason="the shipped model is not in this checkout")
def test_demo_of_all_six(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--all", "--output", str(out), "--scenes", "8", "--draw", "1", "--budgets", "36"]) == 0
    table = capsys.readouterr().out
    assert all(
        name in table
        for name in ("id_pruner", "S2-SAM", "ZO-SAM", "BiDST", "video by STDO", "JSTDO", "a delta", "bicubic")
    )
    page = (out / "report.html").read_text()
    for name in ("landscape.png", "masks.png", "frame.png", "kept_tokens_00.png"):
        assert name in page
        assert (out / name).read_bytes().startswith(b"\x89PNG")
