"""Dropping tokens between layers of the language model, against the stock model with those tokens hidden."""

import copy
from typing import Any

import pytest
import torch
import transformers

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner, token_pruner
from hf_efficient.compat.transformers import cache_name, cache_of
from hf_efficient.representation.vlm.decoder.layer_choice import drawn
from tests.tiny import FAMILIES, MIXED_ROWS, ROWS, generate, language_model, prompts, pruned, stock, video_prompts

NAMES = ["llava", "llava_next", "llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl", "smolvlm", "idefics3",
         "paligemma", "internvl"]  # fmt: skip
CAUSAL = [
    name for name in NAMES if name != "paligemma"
]  # whose prompt looks both ways: its last word is like any other


def deep(name, attention="sdpa", **settings):
    """A model with a pruner that drops tokens after a layer, and all tokens kept before it."""
    return pruned(name, attention, **{"budget": 1.0, "llm_layers": [1], "llm_budget": 5, **settings})


def four_layers(**settings):
    """As `deep`, of four layers."""
    model, processor = stock("llava")
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers = 4
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    attach_token_pruner(model, processor, TokenPrunerConfig(budget=1.0, **settings))
    return model, processor


@pytest.mark.parametrize("name", CAUSAL)
def test_what_the_last_token_attends_to_is_kept(name):
    model, processor = deep(name)
    inputs = processor(**prompts(name, ROWS))
    with torch.no_grad():
        model(**inputs)
    columns, counts = model.base_model.token_pruner.layers.kept[1]
    eager, _ = stock(name, "eager")
    with torch.no_grad():
        attention = eager(**inputs, output_attentions=True).attentions[0].mean(1)[:, -1]
    visual = inputs["input_ids"] == model.config.image_token_id
    for row in range(2):
        best = attention[row].masked_fill(~visual[row], -1).topk(5).indices.tolist()
        kept = set(columns[row, counts[row]].tolist())
        assert {c for c in kept if visual[row, c]} == set(best)
        assert kept - set(best) == set((~visual[row]).nonzero()[:, 0].tolist())


def whole_pass(name, inputs):
    """Values (B, L, h, d) of a stock model's first layer, and the cosines and sines that its layers are given."""
    model, _ = stock(name, "eager")
    seen: dict[str, Any] = {}
    layers = language_model(model).layers
    attention = layers[0].self_attn
    attention.v_proj.register_forward_hook(lambda module, args, out: seen.update(values=out))
    layers[1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(rotary=kwargs["position_embeddings"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    return seen["values"].unflatten(-1, (-1, attention.head_dim)), seen["rotary"]


@pytest.mark.parametrize("name", CAUSAL)
def test_ivc_keeps_landmarks_of_the_positions_and_what_is_like_the_question(name):
    """The rule of IVC-Prune's public code, row by row, at a fixed number of tokens."""
    model, processor = deep(name, llm_choice="ivc", llm_budget=7)
    inputs = processor(**prompts(name, ROWS))
    with torch.no_grad():
        model(**inputs)
    columns, counts = model.base_model.token_pruner.layers.kept[1]
    values, rotary = whole_pass(name, inputs)
    for row in range(2):
        real = inputs["attention_mask"][row].nonzero()[:, 0].tolist()
        visual = (inputs["input_ids"][row] == model.config.image_token_id).nonzero()[:, 0].tolist()
        asked = [i for i in real if i > max(visual)]

        def like(rows: list[int], j: int, values: Any = values[row], real: Any = real) -> float:
            """Mean over heads and rows of the softmax over all real tokens."""
            total = 0.0
            for i in rows:
                for head in range(values.shape[1]):
                    logits = values[real, head] @ values[i, head] / values.shape[2] ** 0.5
                    total += float(logits.softmax(0)[real.index(j)])
            return total / len(rows) / values.shape[1]

        seeds = [max(visual, key=lambda j: like(asked, j))]  # 1 % of so few is one
        marks: set[int] = set()
        for part in rotary:
            angles = part[row if len(part) > 1 else 0].mean(-1)
            marks |= set(sorted(visual, key=lambda j: -float(angles[j]))[:1])  # a sixth of seven, rounded
        rest = [j for j in visual if j not in marks | set(seeds)]
        rest.sort(key=lambda j: -like([*asked, *seeds], j))
        best = [*marks, *(s for s in seeds if s not in marks), *rest][:7]
        kept = columns[row, counts[row]].tolist()
        assert {c for c in kept if c in visual} == set(best)
        assert set(kept) - set(visual) == set(range(inputs["input_ids"].shape[1])) - set(visual)


def test_a_random_draw_is_the_same_for_every_prompt_with_as_many_tokens_and_looks_at_nothing():
    model, processor = four_layers(llm_choice="random", llm_layers=[1, 3], llm_budget=0.5)
    layers = language_model(model).layers
    assert not any(hasattr(layer.self_attn, "attention_watched") for layer in layers)
    places = []
    for rows in ([ROWS[0]], [ROWS[1]], ROWS):
        inputs = processor(**prompts("llava", rows))
        with torch.no_grad():
            model(**inputs)
        kept = model.base_model.token_pruner.layers.kept
        for row in range(len(rows)):
            visual = (inputs["input_ids"][row] == model.config.image_token_id).nonzero()[:, 0].tolist()
            stages = [set(c[row, n[row]].tolist()) & set(visual) for c, n in (kept[1], kept[3])]
            assert stages[1] < stages[0]
            assert [len(s) for s in stages] == [(len(visual) + 1) // 2, (len(visual) + 3) // 4]
            places.append([sorted(visual.index(c) for c in s) for s in stages])
    assert places[0] == places[2]
    assert places[1] == places[3]
    halves = [drawn(torch.ones(1, n, dtype=torch.bool))[0].topk(n // 2).indices for n in range(20, 120)]
    means = [float(half.float().mean()) / (2 * len(half) - 1) for half in halves]  # place in the row, 0 to 1
    assert abs(sum(means) / 100 - 0.5) < 0.02


@pytest.mark.parametrize("rule", ["attention", "random", "ivc"])
@pytest.mark.parametrize("method", ["id_pruner", "itg"])
@pytest.mark.parametrize("name", CAUSAL)
def test_logits_are_those_of_a_model_that_cannot_see_what_was_dropped(name, method, rule):
    """Positions are right, and composition with every first stage: the tokens that are left are as they would be."""
    settings = {"method": method, "budget": 4, "llm_budget": 3, "llm_choice": rule}
    model, processor = deep(name, **settings)
    inputs = processor(**prompts(name, ROWS))
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    columns, counts = model.base_model.token_pruner.layers.kept[1]
    assert columns.shape[1] < inputs["input_ids"].shape[1]
    seen = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool).scatter(1, columns, counts)
    whole, _ = pruned(name, "eager", method=method, budget=4, positions=model.base_model.token_pruner.config.positions)

    def hide(module, args, kwargs):
        mask = kwargs["attention_mask"]
        kwargs["attention_mask"] = mask.masked_fill(~seen[:, None, None], torch.finfo(mask.dtype).min)
        return args, kwargs

    language_model(whole).layers[1].register_forward_pre_hook(hide, with_kwargs=True)
    with torch.no_grad():
        assert torch.allclose(whole(**inputs).logits[:, -1], logits, atol=1e-4)


@pytest.mark.parametrize("method", ["id_pruner", "itg"])
@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_generate_agrees(name, method):
    model, processor = deep(name, method=method, budget=4, llm_budget=0.5)
    arguments = prompts(name, ROWS)
    inputs = dict(processor(**arguments))
    expected = generate(model, inputs)
    settings = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    step = model.generate(**inputs, **settings).logits[0]
    assert torch.allclose(model(**inputs).logits[:, -1], step, atol=1e-4)
    assert torch.equal(generate(model, inputs, use_cache=False), expected)
    beams = generate(model, inputs, num_beams=3, num_return_sequences=2)
    for row in range(2):
        shown = arguments["images"][row : row + 1] if FAMILIES[name].nested else arguments["images"][row : 2 * row + 1]
        alone = processor(**{**arguments, "text": arguments["text"][row : row + 1], "images": shown})
        assert torch.allclose(model(**alone).logits[0, -1], step[row], atol=1e-4)
        assert torch.equal(generate(model, alone)[0], expected[row])
        assert torch.equal(generate(model, alone, num_beams=3, num_return_sequences=2), beams[2 * row : 2 * row + 2])


def test_later_layers_hold_fewer_keys_and_the_output_keeps_its_places():
    model, processor = deep("llava")
    inputs = processor(**prompts("llava", [[1, 2]]))
    with torch.no_grad():
        output = model(**inputs, use_cache=True)
    length = inputs["input_ids"].shape[1]
    keys = [layer.keys.shape[2] for layer in cache_of(output).layers]
    assert keys == [length, length - 32 + 5]
    assert output.logits.shape[1] == length


def test_several_layers_drop_step_by_step():
    """PyramidDrop: each stage keeps its share of what the one before left."""
    model, processor = four_layers(llm_layers=[1, 3], llm_budget=0.5)
    inputs = processor(**prompts("llava", ROWS))
    with torch.no_grad():
        output = model(**inputs, use_cache=True)
    visual = inputs["input_ids"] == model.config.image_token_id
    first, second = (model.base_model.token_pruner.layers.kept[stage] for stage in (1, 3))
    for (columns, counts), share in ((first, 0.5), (second, 0.25)):
        for row in range(2):
            left = visual[row, columns[row, counts[row]]].sum()
            assert left == share * visual[row].sum()
    for row in range(2):
        assert set(second[0][row, second[1][row]].tolist()) < set(first[0][row, first[1][row]].tolist())
    lengths = [layer.keys.shape[2] for layer in cache_of(output).layers]
    assert lengths[0] > lengths[1] == lengths[2] > lengths[3]
    expected = generate(model, inputs)
    assert torch.equal(generate(model, inputs, use_cache=False), expected)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_second_turn_and_rows_without_images(name):
    model, processor = deep(name)
    inputs = dict(processor(**prompts(name, [[0]])))
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    first = model.generate(**inputs, **settings)
    kept = model.base_model.token_pruner.layers.kept[1][0].clone()
    more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    longer = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    turn = model.generate(**longer, **{cache_name(): cache_of(first)}, **settings)
    assert torch.equal(model.base_model.token_pruner.layers.kept[1][0], kept)
    assert torch.stack(turn.logits).isfinite().all()
    mixed = processor(**prompts(name, MIXED_ROWS))
    stock_model, stock_processor = stock(name)
    reference = stock_model(**stock_processor(**prompts(name, MIXED_ROWS))).logits[1, -1]
    assert torch.allclose(model(**mixed).logits[1, -1], reference, atol=1e-4)
    text = {"text": ["w1 w2 w3"], "return_tensors": "pt"}
    assert torch.equal(generate(model, processor(**text)), generate(stock_model, stock_processor(**text)))


@pytest.mark.parametrize("name", ["qwen2_vl", "llava_onevision", "internvl"])
def test_videos_are_pruned_too(name):
    model, processor = deep(name)
    inputs = processor(**video_prompts(name))
    tokens = generate(model, inputs)
    assert torch.equal(generate(model, inputs, use_cache=False), tokens)
    assert model.base_model.token_pruner.layers.kept[1][0].shape[1] < inputs["input_ids"].shape[1]


def test_training_goes_through():
    model, processor = deep("llava")
    inputs = processor(**prompts("llava", ROWS))
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_run_again_in_the_backward_pass_see_the_call_they_belong_to(reentrant):
    """Two prompts of different length go forward before either goes back."""
    grads = []
    for checkpointing in (False, True):
        model, processor = deep("llava", method="itg", budget=8, llm_budget=3)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        losses = []
        for rows in ([[0]], [[1, 2]]):
            inputs = processor(**prompts("llava", rows))
            losses.append(model(**inputs, labels=inputs["input_ids"], use_cache=False).loss)
        sum(losses).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(g, grads[1][n], atol=1e-6) for n, g in grads[0].items())


def test_detaching_takes_every_hook_off_and_contexts_put_them_back():
    model, processor = stock("llava")
    inputs = processor(**prompts("llava", ROWS))
    expected = generate(model, inputs)
    layers = language_model(model).layers
    config = TokenPrunerConfig(budget=1.0, llm_layers=[1], llm_budget=3)
    with token_pruner(model, processor, config):
        first = generate(model, inputs)
        with token_pruner(model, processor, TokenPrunerConfig(budget=1.0)):
            assert torch.equal(generate(model, inputs), expected)
        assert torch.equal(generate(model, inputs), first)
    assert torch.equal(generate(model, inputs), expected)
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
    attach_token_pruner(model, processor, config)
    other = copy.deepcopy(model)
    detach_token_pruner(model, processor)
    assert torch.equal(generate(model, inputs), expected)
    assert torch.equal(generate(other, inputs), first)


def test_what_cannot_be_done_is_refused():
    layers: Any
    for layers in ([0], [2, 2], [1.0], (1,), 3):
        with pytest.raises(ValueError, match="llm_layers="):
            TokenPrunerConfig(llm_layers=layers)
    with pytest.raises(ValueError, match="llm_budget=0 keeps nothing"):
        TokenPrunerConfig(llm_budget=0)
    with pytest.raises(ValueError, match=r"llm_layers=\[2\] cannot be used with a language model of 2 layers"):
        deep("llava", llm_layers=[2])
    with pytest.raises(ValueError, match="all of full attention"):
        deep("gemma3")
    model, processor = deep("llava")
    inputs = processor(**prompts("llava", ROWS))
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        generate(model, inputs, prefill_chunk_size=5)
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        generate(model, inputs, cache_implementation="static", disable_compile=True)
