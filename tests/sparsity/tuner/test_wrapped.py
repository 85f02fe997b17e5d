"""A tuned model inside what changes how its layers hold their parameters, or how they run: FSDP and torch.compile."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel

from hf_efficient import BiDSTConfig
from tests.sparsity.models import ConvNet, convnet_inputs, disturb

TARGETS = {"weight": ["conv1", "conv2", "hidden"], "delta": ["conv1", "conv2", "hidden", "emb"]}


def tuned(target: str) -> PeftModel:
    config = BiDSTConfig(target=target, sparsity=0.7, init="random", target_modules=TARGETS[target])
    model = get_peft_model(ConvNet(), config).eval()
    disturb(model)
    return model


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("target", TARGETS)
def test_fsdp_computes_what_the_bare_model_does(target: str) -> None:
    model, inputs = tuned(target), convnet_inputs()
    with torch.no_grad():
        expected = model(*inputs)
        wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        torch.testing.assert_close(wrapped(*inputs), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_it_compiles_in_one_graph(target: str) -> None:
    model, inputs = tuned(target), convnet_inputs()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs), model(*inputs))
