"""Answers, costs and the evaluation set, against the stock model's own single runs and closed forms."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient.compat.transformers import cache_of
from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    answer_questions,
    encode_prompts,
    exact_match,
    kv_cache_bytes,
    load_evaluation_set,
    prefill,
    prefill_seconds,
)
from tests.fuzzing import limited_memory
from tests.scene_vlm import make_scene_vlm, make_scenes


@pytest.fixture(scope="module")
def vlm() -> tuple[Any, Any]:
    return make_scene_vlm()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes") / "set", scenes=4)


def test_load_evaluation_set_reads_what_was_written(folder: Path) -> None:
    scenes = load_evaluation_set(folder)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [s.name for s in scenes] == [line["file_name"] for line in lines]
    assert [[vars(q) for q in s.questions] for s in scenes] == [line["questions"] for line in lines]
    assert all(s.image.mode == "RGB" and s.image.size == (96, 96) for s in scenes)
    assert len(load_evaluation_set(folder, limit=3)) == 3
    assert {scene.photograph for scene in scenes} == {None}


def test_the_photograph_of_a_scene_is_read_where_it_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set")
    path = tmp_path / "set/metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["photograph"], lines[2]["photograph"] = "lake", None
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [scene.photograph for scene in load_evaluation_set(tmp_path / "set")] == ["lake", None, None, None]


def test_load_evaluation_set_names_the_broken_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metadata\.jsonl"):
        load_evaluation_set(tmp_path)
    shutil.copytree(folder / "images", tmp_path / "images")
    good = json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])
    asked = good["questions"][0]
    bad: tuple[Any, ...] = (
        "no json", "[" * 100_000, "\udcff", [], {}, {**good, "file_name": ["x.png"]}, {**good, "questions": asked},
        {**good, "photograph": 7},
        {"file_name": "x.png", "questions": [{"question": "?"}]}, {**good, "questions": [asked, "?"]},
        {**good, "questions": [{**asked, "answer": 3}]}, {**good, "file_name": f"{folder}/{good['file_name']}"},
        {**good, "file_name": f"../{folder.name}/{good['file_name']}"},
    )  # fmt: skip
    for line in bad:
        text = line if isinstance(line, str) else json.dumps(line)
        (tmp_path / "metadata.jsonl").write_text(f"{json.dumps(good)}\n{text}\n", errors="surrogateescape")
        with pytest.raises(ValueError, match="line 2 is not a scene"):
            load_evaluation_set(tmp_path)


def test_images_that_cannot_be_read_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set")
    first = tmp_path / "set" / json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])["file_name"]
    raw = first.read_bytes()
    huge = raw[:16] + (10**5).to_bytes(4, "big") * 2 + raw[24:]
    for content in (b"", raw[:60], raw[: len(raw) // 2], huge, raw[:8] + bytes(40)):
        first.write_bytes(content)
        with limited_memory(2**28), pytest.raises((OSError, ValueError), match=f"{first.name}|truncated|broken"):
            load_evaluation_set(tmp_path / "set")


def test_the_shipped_evaluation_set_is_large_and_loads_as_an_imagefolder(tmp_path: Path) -> None:
    from datasets import load_dataset

    scenes = load_evaluation_set(EVALUATION_SET)
    assert len(scenes) >= 500
    assert len({question.family for scene in scenes for question in scene.questions}) >= 7
    rows = load_dataset("imagefolder", data_dir=str(EVALUATION_SET), split="train", cache_dir=str(tmp_path))
    assert len(rows) == len(scenes)
    assert rows[7]["image"].convert("RGB").tobytes() == scenes[7].image.tobytes()
    assert [q["answer"] for q in rows[7]["questions"]] == [q.answer for q in scenes[7].questions]


def test_batched_answers_equal_single_ones(vlm: tuple[Any, Any], folder: Path) -> None:
    model, processor = vlm
    asked = [(scene.image, question.question) for scene in load_evaluation_set(folder) for question in scene.questions]
    images, questions = zip(*asked)
    seen: list[int] = []
    batched = answer_questions(model, processor, images, questions, batch_size=5, progress=seen.append)
    assert seen == [5, 5, 2]
    single = []
    for image, question in asked:
        inputs = processor(images=image, text=f"<image> {question}", return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        single.append(" ".join(processor.decode(ids, skip_special_tokens=True).split()))
    assert batched == single
    assert len(set(batched)) > 1, "a model that always says the same tests nothing"


def test_as_many_images_as_questions(vlm: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="0 images for 1 questions"):
        answer_questions(*vlm, images=[], questions=["list all ."])


def test_exact_match_forgives_case_and_spacing_only() -> None:
    assert exact_match(["Boot ", "bag  boot", "bag", ""], ["boot", "bag boot", "bags", "bag"]) == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match="1 predictions for 2 answers"):
        exact_match(["a"], ["a", "b"])


def test_kv_cache_bytes_is_the_closed_form(vlm: tuple[Any, Any], folder: Path) -> None:
    from transformers import DynamicCache

    model, processor = vlm
    scene = load_evaluation_set(folder)[0]
    inputs = encode_prompts(processor, [scene.image] * 3, [q.question for q in scene.questions])
    length = inputs["input_ids"].shape[1]
    text, floats = model.config.text_config, 4
    layers, heads, width = text.num_hidden_layers, text.num_key_value_heads, text.head_dim
    assert kv_cache_bytes(cache_of(prefill(model, inputs))) == 2 * layers * 3 * heads * length * width * floats
    half = cache_of(prefill(model.to(torch.bfloat16), inputs))
    model.float()
    assert kv_cache_bytes(half) * 2 == 2 * layers * 3 * heads * length * width * floats
    assert kv_cache_bytes(DynamicCache(config=model.config.get_text_config())) == 0


def test_prefill_is_the_first_step_of_generate(vlm: tuple[Any, Any], folder: Path) -> None:
    model, processor = vlm
    scene = load_evaluation_set(folder)[1]
    inputs = encode_prompts(processor, [scene.image] * 3, [q.question for q in scene.questions])
    first = prefill(model, inputs).logits[:, -1]
    step = model.generate(**inputs, do_sample=False, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    assert torch.allclose(first, step.logits[0], atol=1e-5)


def test_prefill_seconds_grows_with_the_batch(vlm: tuple[Any, Any], folder: Path) -> None:
    model, processor = vlm
    scene = load_evaluation_set(folder)[0]
    one = encode_prompts(processor, [scene.image], ["list all ."])
    many = encode_prompts(processor, [scene.image] * 64, ["list all ."] * 64)
    assert 0 < prefill_seconds(model, one, 3) < prefill_seconds(model, many, 3)
