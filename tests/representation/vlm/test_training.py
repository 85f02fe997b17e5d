"""Training through pruned tokens: gradients flow to what is kept, and losses fall."""

import pytest
import torch

from tests.tiny import FAMILIES, ROWS, prompts, pruned

PROJECTORS = ("multi_modal_projector", "connector", "visual.merger")


def projector(model):
    for name in PROJECTORS:
        try:
            return model.base_model.get_submodule(name)
        except AttributeError:
            continue
    raise AssertionError("no projector")


def batch(name, processor):
    inputs = dict(processor(**prompts(name, ROWS)))
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100  # the last words; images are never asked for
    inputs["labels"] = labels
    return inputs


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("positions", ["auto", "original"])
def test_the_loss_falls_and_the_projector_learns(name, positions):
    model, processor = pruned(name, positions=positions)
    model.train()
    inputs = batch(name, processor)
    start = {n: p.detach().clone() for n, p in projector(model).named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = model(**inputs).loss
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in projector(model).parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert any(not torch.equal(p, start[n]) for n, p in projector(model).named_parameters())


def test_gradients_reach_kept_patches_only():
    """On a projector that works token by token, the gradient of what is not kept is zero."""
    model, processor = pruned("llava", budget=5)
    inputs = batch("llava", processor)
    seen = []

    def keep(module, args, output):
        output.retain_grad()
        seen.append(output)

    projector(model).register_forward_hook(keep)
    model(**inputs).loss.backward()
    reached = seen[0].grad.abs().sum(-1) > 0
    for unit, row in zip(model.base_model.token_pruner.last, reached, strict=True):
        assert row.nonzero().squeeze(1).tolist() == unit.indices.tolist()


def test_gradients_equal_those_of_the_pure_function():
    from hf_efficient import TokenPrunerConfig
    from hf_efficient.representation.vlm.inputs import prune_inputs
    from tests.tiny import stock

    grads = []
    for attached in (True, False):
        model, processor = pruned("llava", budget=5) if attached else stock("llava")
        inputs = batch("llava", processor)
        arguments = inputs if attached else prune_inputs(model, inputs, TokenPrunerConfig(budget=5))
        model(**arguments).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_next"])
def test_activation_checkpointing_gives_the_same_gradients(name):
    grads = []
    for checkpointing in (False, True):
        model, processor = pruned(name)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch(name, processor), use_cache=False).loss.backward()
        grads.append([p.grad for p in projector(model).parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_right_padded_batches_train_as_single_rows():
    model, processor = pruned("qwen2_5_vl", positions="original")
    arguments = {**prompts("qwen2_5_vl", ROWS), "padding_side": "right"}
    inputs = processor(**arguments)
    assert (inputs["attention_mask"][:, -1] == 0).any()
    logits = model(**inputs).logits
    for row, chosen in enumerate(ROWS):
        alone = processor(**{**arguments, "text": arguments["text"][row : row + 1], "images": images(arguments, row)})
        length = int(inputs["attention_mask"][row].sum())
        assert alone["input_ids"].shape[1] == length, chosen
        assert torch.allclose(model(**alone).logits[0], logits[row, :length], atol=1e-4)


def images(arguments, row):
    counts = [len(chosen) for chosen in ROWS]
    return arguments["images"][sum(counts[:row]) : sum(counts[: row + 1])]
