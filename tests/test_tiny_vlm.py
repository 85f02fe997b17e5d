"""The VLM that ships with the package: plain transformers loads it, it answers, and it needs its tokens."""

import subprocess
import sys

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.representation.packed_turns import grade_scenes
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    TINY_VLM,
    answer_questions,
    exact_match,
    load_evaluation_set,
    load_vlm,
)

FAMILIES = {"at", "count", "exists", "where", "left_of", "largest", "list"}
#: Any Python with transformers: nothing of this package is imported.
PLAIN = """
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sys.argv[3]}]}]
prompt = processor.apply_chat_template(message, add_generation_prompt=True)
inputs = processor(images=Image.open(sys.argv[2]).convert("RGB"), text=prompt, return_tensors="pt")
new = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1]:]
assert "hf_efficient" not in sys.modules
answer = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
print(type(model).__name__, type(processor).__name__, answer, sep="|")
"""


@pytest.fixture(scope="module")
def scenes():
    return load_evaluation_set(limit=200)


@pytest.fixture(scope="module")
def vlm():
    return AutoModelForImageTextToText.from_pretrained(TINY_VLM).eval(), AutoProcessor.from_pretrained(TINY_VLM)


def accuracy(graded):
    return sum(map(sum, graded)) / sum(map(len, graded))


def test_plain_transformers_loads_it_and_it_answers(scenes):
    scene, asked = scenes[0], scenes[0].questions[0]
    command = [sys.executable, "-c", PLAIN, str(TINY_VLM), str(EVALUATION_SET / scene.name), asked.question]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TINY_VLM.parent)
    model, processor, answer = result.stdout.strip().split("|")
    assert (model, processor) == ("LlavaForConditionalGeneration", "LlavaProcessor")
    assert answer == asked.answer


def test_it_is_small_and_safe():
    weights = [path for path in TINY_VLM.iterdir() if path.suffix in (".safetensors", ".bin", ".pt")]
    assert [path.name for path in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size <= 12e6


def test_all_tokens_answer_nearly_everything_and_a_tenth_at_random_does_not(vlm, scenes):
    model, processor = vlm
    every = accuracy(grade_scenes(model, processor, scenes))
    assert every >= 0.95
    with token_pruner(model, processor, TokenPrunerConfig(method="random", budget=0.1)):
        assert accuracy(grade_scenes(model, processor, scenes)) < every - 0.15


def test_id_pruner_keeps_more_than_chance_at_a_tenth(vlm, scenes):
    model, processor = vlm
    graded = {}
    for method in ("id_pruner", "random"):
        with token_pruner(model, processor, TokenPrunerConfig(method=method, budget=0.1)):
            graded[method] = accuracy(grade_scenes(model, processor, scenes))
    assert graded["id_pruner"] > graded["random"] + 0.1


@pytest.mark.parametrize("budget", [None, 0.1])
def test_grading_in_one_pass_is_grading_what_generate_says(vlm, scenes, budget):
    model, processor = vlm
    part = scenes[:12]
    asked = [(scene.image, question) for scene in part for question in scene.questions]

    def both():
        answers = answer_questions(model, processor, [i for i, _ in asked], [q.question for _, q in asked])
        return exact_match(answers, [q.answer for _, q in asked]), grade_scenes(model, processor, part)

    if budget is None:
        generated, packed = both()
    else:
        with token_pruner(model, processor, TokenPrunerConfig(method="random", budget=budget)):
            generated, packed = both()
        assert not all(generated), "a test in which nothing is wrong does not tell the two apart"
    assert generated == [right for row in packed for right in row]


def test_the_evaluation_set_loads_as_a_dataset(scenes):
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset("imagefolder", data_dir=str(EVALUATION_SET), split="train")
    assert len(data) >= 500
    assert data[0]["image"].size == (96, 96)
    families = {question["family"] for row in data.remove_columns("image") for question in row["questions"]}
    assert families == FAMILIES
    names = {scene.name: [q.answer for q in scene.questions] for scene in scenes}
    rows = data.remove_columns("image").to_list()
    assert [q["answer"] for q in rows[3]["questions"]] in names.values()


def test_the_shipped_generator_fits_the_model_and_is_small() -> None:
    folder = TINY_VLM / "refined"
    assert (folder / "generator.safetensors").stat().st_size <= 1_000_000
    model, processor = load_vlm()
    scenes = load_evaluation_set(limit=8)
    asked = [(scene.image, question.question) for scene in scenes for question in scene.questions]
    images, questions = zip(*asked, strict=True)
    with token_pruner(model, processor, folder):
        answers = answer_questions(model, processor, images, questions)
        assert len(model.base_model.token_pruner.last[0].indices) == 2
    right = [question.answer for scene in scenes for question in scene.questions]
    assert sum(exact_match(answers, right)) >= 0.4 * len(right)  # guessing without an image: 0.11
