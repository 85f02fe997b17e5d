"""The pure function on a stock model and stock inputs: the same as the attached pair, without attaching anything."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner, reduce_tokens
from hf_efficient.representation.vlm.inputs import prune_inputs
from tests.tiny import FAMILIES, MIXED_ROWS, ROWS, budget, generate, prompts, pruned, stock, video_prompts

POSITIONS = [(name, "auto") for name in FAMILIES] + [(n, "original") for n, f in FAMILIES.items() if not f.mrope]


@pytest.mark.parametrize(("name", "positions"), POSITIONS)
def test_pruning_prepared_inputs_equals_an_attached_pair(name, positions):
    config = TokenPrunerConfig(budget=budget(name), positions=positions)
    cases = [prompts(name, ROWS), prompts(name, MIXED_ROWS)]
    if FAMILIES[name].video:
        cases.append(video_prompts(name, images=name != "smolvlm"))
    for arguments in cases:
        model, processor = stock(name)
        inputs = processor(**arguments)
        keys = set(inputs)
        made = prune_inputs(model, inputs, config)
        assert set(inputs) == keys  # the arguments are not changed
        tokens = generate(model, made)
        logits = model(**prune_inputs(model, inputs, config)).logits
        attached, attached_processor = attach_token_pruner(model, processor, config)
        expected_inputs = attached_processor(**arguments)
        for key in ("input_ids", "attention_mask"):
            assert torch.equal(made[key], expected_inputs[key])
        assert torch.allclose(logits[:, -1], attached(**expected_inputs).logits[:, -1], atol=1e-4)
        assert torch.equal(tokens, generate(attached, expected_inputs))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_labels_and_padding_follow_their_tokens(name):
    model, processor = stock(name)
    inputs = dict(processor(**prompts(name, ROWS)))
    image = model.config.image_token_id
    inputs["labels"] = torch.where(inputs["input_ids"] == image, -100, inputs["input_ids"])
    made = prune_inputs(model, inputs, TokenPrunerConfig(budget=4))
    text = (made["input_ids"] != image) & (made["attention_mask"] == 1)
    assert torch.equal(made["labels"][text], made["input_ids"][text])
    assert (made["labels"][~text] == -100).all()
    assert ((made["input_ids"] == image).sum(1) == torch.tensor([4, 8])).all()


def test_the_config_may_be_its_values_or_the_folder_it_was_saved_to(tmp_path):
    model, processor = stock("llava")
    inputs = processor(**prompts("llava", ROWS))
    config = TokenPrunerConfig(budget=4, method="divprune")
    config.save_pretrained(tmp_path)
    expected = prune_inputs(model, inputs, config)
    for given in (config.to_dict(), tmp_path, str(tmp_path)):
        assert torch.equal(prune_inputs(model, inputs, given)["input_ids"], expected["input_ids"])
    with pytest.raises(TypeError, match=r"config=4; expected a TokenPrunerConfig"):
        prune_inputs(model, inputs, 4)  # type: ignore[arg-type]


def test_text_alone_passes_through():
    model, processor = stock("llava")
    inputs = processor(text=["w1 w2 w3"], return_tensors="pt")
    made = prune_inputs(model, inputs, TokenPrunerConfig())
    assert torch.equal(made["input_ids"], inputs["input_ids"])
    assert "mm_encoder_outputs" not in made


def test_a_prompt_that_does_not_fit_its_images_is_found():
    model, processor = stock("llava")
    inputs = dict(processor(**prompts("llava", [[0]])))
    inputs["pixel_values"] = inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"found 16, expected 32 in 2 unit\(s\)"):
        prune_inputs(model, inputs, TokenPrunerConfig(budget=4))


def test_attached_models_are_refused():
    model, processor = pruned("llava")
    inputs = stock("llava")[1](**prompts("llava", [[0]]))
    with pytest.raises(ValueError, match="token pruner attached"):
        prune_inputs(model, inputs, TokenPrunerConfig(budget=4))


# question relevance


def questions(name, texts):
    """Two prompts about the same image."""
    arguments = prompts(name, [[0], [0]])
    marks = FAMILIES[name].image
    arguments["text"] = [f"{marks} {text}" for text in texts]
    return arguments


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen3_vl", "gemma3", "internvl", "smolvlm"])
def test_the_question_moves_the_choice(name):
    settings: dict[str, Any] = {"budget": budget(name), "method": "top_importance", "question_weight": 1.0}
    model, processor = pruned(name, **settings)
    inputs = processor(**questions(name, ["w1 w2 w3", "w40 w41 w42 w43"]))
    for call in (model, lambda **kw: model.generate(**kw, max_new_tokens=1)):
        call(**inputs)
        first, second = halves(model.base_model.token_pruner.last)
        assert [u.indices.tolist() for u in first] != [u.indices.tolist() for u in second]
    agnostic, _ = pruned(name, **{**settings, "question_weight": 0.0})
    agnostic(**inputs)
    first, second = halves(agnostic.base_model.token_pruner.last)
    assert [u.indices.tolist() for u in first] == [u.indices.tolist() for u in second]


def halves(units):
    return units[: len(units) // 2], units[len(units) // 2 :]


def test_relevance_is_the_mean_cosine_to_the_words_of_the_prompt():
    model, processor = pruned("llava", budget=5, method="top_importance", question_weight=1.0)
    inputs = processor(**questions("llava", ["w1 w2 w3", "w40 w41"]))
    model(**inputs)
    chosen = [unit.indices.tolist() for unit in model.base_model.token_pruner.last]
    whole, _ = pruned("llava", budget=1.0)
    with torch.no_grad():
        tokens = whole.base_model.get_image_features(inputs["pixel_values"]).pooler_output
    words = model.get_input_embeddings()
    for row, text in enumerate(["w1 w2 w3", "w40 w41"]):
        question = words(torch.tensor(processor.tokenizer(text)["input_ids"]))
        cosine = torch.nn.functional.cosine_similarity(tokens[row][:, None], question[None], dim=-1).mean(1)
        assert sorted(cosine.topk(5).indices.tolist()) == chosen[row]


def test_other_rows_and_padding_do_not_enter_the_question():
    model, processor = pruned("llava", budget=5, question_weight=0.7)
    arguments = questions("llava", ["w1 w2 w3", "w40 w41 w42 w43 w44 w45"])
    model(**processor(**arguments))
    together = model.base_model.token_pruner.last
    for row in range(2):
        alone = {**arguments, "text": arguments["text"][row : row + 1], "images": arguments["images"][row : row + 1]}
        model(**processor(**alone))
        assert torch.equal(model.base_model.token_pruner.last[0].indices, together[row].indices)


def test_question_relevance_without_a_prompt_is_refused():
    model, processor = pruned("llava", question_weight=0.5)
    inputs = processor(**prompts("llava", [[0]]))
    with pytest.raises(ValueError, match=r"question_weight=0\.5 needs the prompt"):
        model.base_model.get_image_features(inputs["pixel_values"])


def test_itg_starts_from_coverage_where_sizes_do_not_count() -> None:
    model, processor = stock("llava")
    inputs = processor(**prompts("llava", ROWS))
    config = TokenPrunerConfig("itg", 5)
    features = torch.stack(list(model.base_model.get_image_features(inputs["pixel_values"]).pooler_output))
    kept = {
        "coverage": reduce_tokens(features, replace(config, proportional_attention=False)).indices,
        "farthest_first": reduce_tokens(features, replace(config, initial_centers="farthest_first")).indices,
    }
    assert not torch.equal(kept["coverage"], kept["farthest_first"])
    made = prune_inputs(model, inputs, config)["mm_encoder_outputs"]["image"].kept
    assert torch.equal(torch.stack([unit.indices for unit in made]), kept["coverage"])
    model.set_attn_implementation("eager")  # which takes the mask of sizes
    attach_token_pruner(model, processor, config)
    made = model.base_model.get_image_features(inputs["pixel_values"]).kept
    assert torch.equal(torch.stack([unit.indices for unit in made]), kept["farthest_first"])
