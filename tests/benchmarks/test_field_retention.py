"""The field's protocol, up to the datasets and the large models: prompts, scores, resuming, the table."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.representation import field_retention
from benchmarks.representation.field_retention import PUBLISHED, TABLES, answers, measure, table
from benchmarks.representation.field_tasks import TASKS, Item, plain, with_images_of_gqa
from benchmarks.representation.grade_book import Book
from hf_efficient import TokenPrunerConfig
from tests.scene_vlm import make_scene_vlm

IMAGE = Image.new("L", (96, 96), 80)


def items(*answers: str, **others: list[str]) -> list[Item]:
    return [Item(IMAGE, "q", (answer,), *(values[i] for values in others.values())) for i, answer in enumerate(answers)]


def test_answers_are_compared_in_plain_form() -> None:
    assert plain(" The  Red bus. ") == "red bus"
    assert TASKS["gqa"].score(items("red", "bus", "left", "two"), ["Red.", "a bus", "right", "2"]) == 50


def test_letters_are_read_out_of_sentences() -> None:
    score = TASKS["scienceqa"].score
    assert score(items("B", "A", "C"), ["B", "The answer is A.", "Dog"]) == pytest.approx(200 / 3)


def test_vqa_accuracy_leaves_each_annotator_out() -> None:
    item = Item(IMAGE, "q", ("stop",) * 3 + ("halt",) * 7)
    assert TASKS["textvqa"].score([item], ["Stop"]) == pytest.approx(100 * (3 * (2 / 3) + 7 * 1) / 10)
    assert TASKS["textvqa"].score([item], ["go"]) == 0


def test_pope_is_the_mean_of_f1_over_its_parts() -> None:
    asked = items("yes", "yes", "no", "no", "yes", part=["random"] * 4 + ["popular"])
    # random: 1 right yes, 1 missed, 1 false alarm -> 2 / (2 + 2); popular: 1
    assert TASKS["pope"].score(asked, ["Yes", "no", "yes", "No.", "yes, there is"]) == pytest.approx(75)


def test_mme_adds_images_with_both_questions_right() -> None:
    asked = items("yes", "no", "yes", "no", part=["count"] * 4, group=["1", "1", "2", "2"])
    assert TASKS["mme"].score(asked, ["Yes", "No", "Yes", "Yes"]) == pytest.approx(75 + 50)
    assert TASKS["mme"].score(asked, ["yes", "no", "yes", "no"]) == 200


ROWS = {
    "gqa": {"image": IMAGE, "question": "Is it red?", "answer": "no"},
    "scienceqa": {"image": IMAGE, "question": "Which?", "choices": ["one", "two"], "answer": 1, "hint": "Look."},
    "textvqa": {"image": IMAGE, "question": "what does it say?", "answers": ["stop"] * 10},
    "pope": {"image": IMAGE, "question": "Is there a dog in the image?", "answer": "no", "category": "random"},
    "mme": {"image": IMAGE, "question": "Is it a cat? Please answer yes or no.", "answer": "Yes", "category": "count",
            "question_id": "7"},
}  # fmt: skip


def test_rows_of_the_datasets_become_prompts() -> None:
    made = {name: next(iter(TASKS[name].items([row]))) for name, row in ROWS.items()}
    short = "\nAnswer the question using a single word or phrase."
    assert made["gqa"].prompt == "Is it red?" + short
    assert made["scienceqa"].prompt == (
        "Context: Look.\nWhich?\nA. one\nB. two\nAnswer with the option's letter from the given choices directly."
    )
    assert made["scienceqa"].answers == ("B",)
    assert made["textvqa"].prompt == "What does it say?" + short
    assert made["mme"].prompt == "Is it a cat?" + short
    assert made["mme"].answers == ("yes",)
    assert (made["mme"].part, made["mme"].group) == ("count", "7")
    assert list(TASKS["scienceqa"].items([{**ROWS["scienceqa"], "image": None}])) == []
    assert list(TASKS["mme"].items([{**ROWS["mme"], "category": "code_reasoning"}])) == []
    assert len(list(TASKS["gqa"].items([ROWS["gqa"]] * 5, limit=3))) == 3
    joined = with_images_of_gqa([{"imageId": 4, "question": "q", "answer": "a"}], [{"id": 4, "image": IMAGE}])
    assert joined[0]["image"] is IMAGE


def test_a_model_is_asked_with_every_config_and_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    model, processor = make_scene_vlm()
    asked = {name: list(TASKS[name].items([row] * 3)) for name, row in ROWS.items()}
    configs = {"all tokens": None, "itg, 9": TokenPrunerConfig(method="itg", budget=9)}
    scores = measure(model, processor, asked, configs, Book(tmp_path / "answers.json", {}), batch_size=2)
    assert set(scores) == set(configs)
    assert set(scores["itg, 9"]) == set(TASKS)
    said = json.loads((tmp_path / "answers.json").read_text())["stored"]
    assert len(said) == 10
    assert said["itg, 9 | gqa | 3"] == answers_with(model, processor, asked["gqa"], configs["itg, 9"])
    monkeypatch.setattr(field_retention, "answers", lambda *_: pytest.fail("asked again"))
    assert measure(model, processor, asked, configs, Book(tmp_path / "answers.json", {})) == scores


def answers_with(model, processor, asked, config):
    from hf_efficient import token_pruner

    with token_pruner(model, processor, config):
        return answers(model, processor, asked, batch_size=3)


def test_chat_templates_are_used_where_there_are_any() -> None:
    _, processor = make_scene_vlm()
    processor.chat_template = None
    assert field_retention.prompt_of(processor, "what ?") == "<image> what ?"
    processor.chat_template = (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}"
        "{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )
    assert field_retention.prompt_of(processor, "what ?") == "<image>what ? ASSISTANT:"


def test_the_table_puts_published_numbers_below_ones_own() -> None:
    scores = {"all tokens": {"gqa": 60.0, "pope": 80.0}, "itg, 64": {"gqa": 57.0, "pope": 80.0}}
    for name in TABLES.values():
        text = table(scores, json.loads((PUBLISHED / name).read_text()))
        assert "| itg, 64 | 57.0 | 80.0 | 97.5% |" in text
        assert "Published" in text
        assert "compare only within" in text
    assert "| SCOPE | 97.8 | 96.0 | 93.5 |" in table(scores, json.loads((PUBLISHED / TABLES["llava"]).read_text()))
