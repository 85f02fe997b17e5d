"""Replicas of DataParallel, DDP and torch.compile: a token pruner below them is attached, called and detached."""

import functools
from typing import Any

import pytest
import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hf_efficient import TokenPrunerConfig, attach_token_pruner, detach_token_pruner
from tests.representation.vlm.test_threads import faults
from tests.tiny import ROWS, generate, prompts, pruned, stock


def logits(model: Any, inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


def test_data_parallel_models_are_attached_to_and_called(one_process):
    for wrap in (DataParallel, DistributedDataParallel):
        model, processor = stock("llava")
        wrapped = wrap(model)
        attach_token_pruner(wrapped, processor, TokenPrunerConfig(method="itg", budget=4))
        inputs = processor(**prompts("llava", ROWS))
        expected = logits(pruned("llava", method="itg")[0], inputs)
        assert torch.equal(logits(wrapped, inputs), expected)
        wrapped(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert model.token_pruner.last
        detach_token_pruner(wrapped, processor)
        assert type(model) is type(stock("llava")[0])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_replicas_as_data_parallel_makes_them_are_attached(name):
    """On several devices DataParallel calls such replicas in threads; here both are on the CPU."""
    model, processor = pruned(name, method="itg")
    inputs = processor(**prompts(name, ROWS))
    expected = logits(model, inputs)

    def replica() -> Any:
        copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
        for module, twin in copies.items():
            for part, inner in module._modules.items():
                twin._modules[part] = None if inner is None else copies[inner]
            for part, weight in module._parameters.items():
                setattr(twin, part, weight)
        return copies[model]

    one, two = replica(), replica()
    assert type(one) is type(model)
    jobs = [functools.partial(logits, m, inputs) for m in (one, two, model)]
    assert faults(jobs, calls=24) == (0, 0)
    assert torch.equal(logits(one, inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_compiled_models_are_attached_to_in_any_order(name):
    for order in ("compile first", "in place", "attach first"):
        torch._dynamo.reset()
        model, processor = stock(name)
        stock_inputs = processor(**prompts(name, ROWS))
        config = TokenPrunerConfig(method="itg", budget=3)
        compiled = model
        if order == "attach first":
            attach_token_pruner(model, processor, config)
        if order == "in place":
            model.compile(backend="eager")
        else:
            compiled = torch.compile(model, backend="eager")
        if order != "attach first":
            expected = logits(compiled, stock_inputs)
            attach_token_pruner(compiled, processor, config)
        inputs = processor(**prompts(name, ROWS))
        other, _ = pruned(name, method="itg", budget=3)
        assert torch.allclose(logits(compiled, inputs), logits(other, inputs), atol=1e-4), order
        assert torch.equal(generate(compiled, inputs), generate(other, inputs)), order
        if order != "attach first":
            detach_token_pruner(compiled, processor)
            assert torch.allclose(logits(compiled, stock_inputs), expected, atol=1e-5), order
    torch._dynamo.reset()


def test_models_that_others_make_a_class_of_are_not_taken_apart():
    model, processor = pruned("llava")
    inputs = processor(**prompts("llava", ROWS))
    expected = logits(model, inputs)
    model.__class__ = type("FSDP" + type(model).__name__, (type(model),), {})  # what fully_shard does
    assert torch.equal(logits(model, inputs), expected)
    with pytest.raises(ValueError, match="Detach before that"):
        detach_token_pruner(model, processor)
    assert torch.equal(logits(model, inputs), expected)
