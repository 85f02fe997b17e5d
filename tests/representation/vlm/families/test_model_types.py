"""docs/model_types.md says of every image-text type what the code does with it."""

import pytest
import torch
import transformers as hf

from tests.tiny import image
from tests.tiny_models import TEXT
from tests.zoo import REFUSED, SLICES, ZOO, parameters
from tests.zoo.clips import VIDEOS
from tests.zoo.parts import square, tokens
from tests.zoo.table import line, row, types


@pytest.fixture(scope="module")
def lines(repository):
    return (repository / "docs/model_types.md").read_text(encoding="utf-8").splitlines()


def test_the_page_has_every_type_once(lines):
    named = [one.split("`")[1] for one in lines if one.startswith("| `")]
    assert named == types()


@pytest.mark.parametrize("name", [n for n in types() if n not in ZOO])
def test_types_without_a_tiny_model_are_what_the_page_says(name, lines):
    assert line(name) in lines


@pytest.mark.parametrize("name", parameters(n for n in ZOO if n in types()))
def test_types_with_a_tiny_model_are_what_the_page_says(name, lines):
    assert row(name)[0] == ("refused" if name in REFUSED else "proven")
    assert (row(name)[1] == "proven") == (name in VIDEOS)
    assert line(name) in lines


def test_fuyu_leaves_the_output_empty_that_is_pruned():
    language = {**TEXT, "model_type": "persimmon"}
    model = hf.FuyuModel(hf.FuyuConfig(text_config=language, patch_size=15))
    output = model.get_image_features(torch.zeros(4, 3 * 15 * 15), return_dict=True)
    assert output.pooler_output is None
    assert output.last_hidden_state.shape == (4, TEXT["hidden_size"])


def test_shieldgemma_writes_other_prompts_than_those_given():
    tokenizer, _ = tokens(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    template = "{% for m in messages %}{% for c in m['content'] %}{{ '<boi>' if c['type'] == 'image' else 'w3' }}"
    images = hf.Gemma3ImageProcessor(size=square())
    processor = hf.ShieldGemma2Processor(images, tokenizer, f"{template}{{% endfor %}}{{% endfor %}}", 4)
    made = processor(text="<boi> w1", images=[image(0)], return_tensors="pt")
    assert made["input_ids"].shape[0] == len(processor.policy_definitions) == 3
    assert not (made["input_ids"] == tokenizer.convert_tokens_to_ids("w1")).any()


def test_every_case_has_its_day(monkeypatch):
    seen = []
    for day in range(SLICES):
        monkeypatch.setattr("tests.zoo.DAY", day)
        seen += [case.values[0] for case in parameters(ZOO) if not case.marks]
    assert set(seen) == set(ZOO)
