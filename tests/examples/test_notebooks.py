"""Notebooks are those of the scripts, and run with tiny models in place of large ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from examples.make_notebooks import FOLDER, cells, notebook

SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_that_of_its_script(script: Path) -> None:
    written = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert written == notebook(script.read_text(encoding="utf-8")), "run `python -m examples.make_notebooks`"
    for cell in json.loads(written)["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), script.name, "exec")


def test_cells() -> None:
    made = cells("# %% [markdown]\n# # Title\n#\n# words\n# %%\na = 1\n\n# a comment\n# %%\nb = 2\n")
    assert [(c["cell_type"], "".join(c["source"])) for c in made] == [
        ("markdown", "# Title\n\nwords"), ("code", "a = 1\n\n# a comment"), ("code", "b = 2"),
    ]  # fmt: skip


def language_model(folder: Path) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.optimization.training.test_trl import tokenizer

    tokenizer().save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=48, max_position_embeddings=1024, **shape)).save_pretrained(folder)
    return str(folder)


def vision_language_model(folder: Path) -> str:
    from tests.tiny import stock

    model, processor = stock("qwen2_5_vl")
    processor.chat_template = "".join([
        "{% for message in messages %}{% for part in message['content'] %}",
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>",
        "{% else %}{{ part['text'] }}{% endif %}",
        "{% endfor %}{% endfor %}",
    ])  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def unet(folder: Path) -> str:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    return str(folder)


def encoder(folder: Path) -> str:
    sentence_transformers: Any = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "boot", "blue", "hat", "footwear", "headwear"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    sentence_transformers.SentenceTransformer(str(folder)).save_pretrained(str(folder))
    return str(folder)


def film(folder: Path) -> str:
    import numpy as np

    from tests.video.clips import make_clip

    folder.mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8)
    return str(make_clip(folder / "in.mp4", frames))


PLACES = {
    "sft_s2sam": ("Qwen/Qwen3-0.6B", language_model),
    "sparse_embedding": ("sentence-transformers/all-MiniLM-L6-v2", encoder),
    "diffusers_lora": ("stable-diffusion-v1-5/stable-diffusion-v1-5", unet),
    "qwen_vl_chat": ("Qwen/Qwen2.5-VL-3B-Instruct", vision_language_model),
    "video_bundle": ("in.mp4", film),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, make = PLACES[script.stem]
    made = make(tmp_path / "model")
    code = script.read_text().replace(f'"{name}"', repr(made))
    code = re.sub(r"max_steps=\d+", "use_cpu=True, max_steps=2", code).replace("a cat sat on the mat", "w1 w2 w3")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, script.name, "exec"), {"__name__": "__main__"})
