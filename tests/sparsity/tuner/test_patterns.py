"""`BiDSTConfig(pattern="2:4")`: in all layers, from the first mask to the merged model and its files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_efficient import BiDSTConfig, load_sparse, prune_sparsegpt, prune_wanda, save_sparse, train_sparsely
from hf_efficient.methods import SPARSITY, settings_of
from tests.sparsity.loops import batches, run, trainable
from tests.sparsity.models import IDS, ConvNet, convnet_inputs, few_steps, gpt2, layers, llama, logits
from tests.sparsity.tuner.test_experts import MODELS

EACH = pytest.mark.parametrize("topology", SPARSITY.names)


def active_of_groups(weight: Tensor, of: int = 4, axis: int = 1) -> list[int]:
    """How many entries of groups of neighbours along `axis` are not zero: all numbers that occur."""
    found: list[int] = (weight != 0).movedim(axis, -1).reshape(-1, of).sum(1).unique().tolist()
    return found


def masks(model: nn.Module) -> list[Tensor]:
    """Of each layer, in the shape of its weight."""
    weights = [layer.sparse_weight("default") for layer in layers(model).values()]
    return [weight.mask().view(weight.shape) for weight in weights]


def network(topology: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    often = settings_of(SPARSITY, topology, update_interval=4, score_interval=2)
    usual = {"pattern": "2:4", "target_modules": ["0", "2"], **often}
    return get_peft_model(net, BiDSTConfig(topology=topology, **{**usual, **settings}))


@EACH
def test_the_pattern_holds_after_every_step_and_in_the_merged_model(topology: str) -> None:
    model = network(topology)
    optimizer = torch.optim.Adam(trainable(model), lr=1e-2)
    training = train_sparsely(model, optimizer, total_steps=60)
    for step, data in enumerate(batches(60)):
        run(model, optimizer, [data])
        for mask in masks(model):
            if topology == "gmp" and step < 44:  # t_stop is 45
                assert min(active_of_groups(mask)) >= 2
            else:
                assert active_of_groups(mask) == [2]
    assert training.report()["sparsity"] == 0.5
    assert (training.report()["mask_updates"] > 5) == (topology != "static")
    merged = model.merge_and_unload()
    for index in (0, 2):  # weights that grew in front of a dead unit are still zero
        assert max(active_of_groups(merged[index].weight)) == 2


@pytest.mark.parametrize("init", ["random", "magnitude", "gradient", "snip"])
@pytest.mark.parametrize(("pattern", "of"), [("2:4", 4), ("1:4", 4), ("2:5", 5)])
def test_the_first_mask_has_the_pattern(init: str, pattern: str, of: int) -> None:
    model = network("static", init=init, pattern=pattern, target_modules=["0"])
    first, *others = model.base_model.model
    base = first.get_base_layer()
    score = base.weight.detach().abs()
    if init in ("gradient", "snip"):
        optimizer = torch.optim.SGD(trainable(model), lr=0.1)
        train_sparsely(model, optimizer, total_steps=10)
        ((x, y),) = batches(1)
        dense = base.weight.detach().clone().requires_grad_()
        loss = F.cross_entropy(nn.Sequential(*others)(F.linear(x, dense, base.bias)), y)
        gradient = torch.autograd.grad(loss, dense)[0].abs()
        score = gradient * score if init == "snip" else gradient
        run(model, optimizer, [(x, y)])
    (mask,) = masks(model)
    kept = int(pattern[0])
    assert active_of_groups(mask, of) == [kept]
    if init != "random":
        best = score.view(-1, of).argsort(1, descending=True)[:, :kept]
        assert torch.equal(mask.view(-1, of), torch.zeros(len(best), of).scatter_(1, best, 1.0).bool())
    else:
        assert len(mask.view(-1, of).long().unique(dim=0)) > 2


def test_conv1d_has_it_along_its_inputs() -> None:
    model = get_peft_model(gpt2(), BiDSTConfig(pattern="4:8", topology="rigl", update_interval=1))
    assert active_of_groups(masks(model)[0], 8, axis=0) == [4]
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    train_sparsely(model, optimizer, total_steps=4)
    before = masks(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    after = masks(model)
    assert all(active_of_groups(mask, 8, axis=0) == [4] for mask in after)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert max(active_of_groups(model.merge_and_unload().transformer.h[0].attn.c_attn.weight, 8, axis=0)) == 4


def test_convolutions_have_it_along_their_channels_at_each_place_of_the_kernel() -> None:
    settings: dict[str, Any] = {"pattern": "2:4", "topology": "rigl", "update_interval": 2}
    with pytest.raises(ValueError, match=r"'conv1' has 3 inputs, .*exclude_modules=\['conv1'\]"):
        get_peft_model(ConvNet(), BiDSTConfig(target_modules=["conv1", "conv2"], **settings))
    model = get_peft_model(ConvNet(), BiDSTConfig(target_modules=["conv2"], **settings))
    optimizer = torch.optim.SGD(trainable(model), lr=0.05)
    training = train_sparsely(model, optimizer, total_steps=20)
    for _ in range(20):
        model(*convnet_inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert training.report()["mask_updates"] >= 3
    assert active_of_groups(model.merge_and_unload().conv2.weight) == [2]


@pytest.mark.parametrize(("name", "axis"), [("qwen", 2), ("gpt_oss", 1)])
@pytest.mark.filterwarnings("ignore:.*lie directly in:UserWarning")
def test_experts_have_it_along_the_inputs_of_each(name: str, axis: int) -> None:
    config = BiDSTConfig(pattern="2:4", topology="set", update_interval=1, target_modules=["experts"])
    model = get_peft_model(MODELS[name](), config).train()
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    train_sparsely(model, optimizer, total_steps=4)
    before = masks(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    for mask, earlier in zip(masks(model), before, strict=True):
        assert not torch.equal(mask, earlier)
        assert active_of_groups(mask, axis=axis) == [2]


@pytest.mark.parametrize("prune", [prune_wanda, prune_sparsegpt])
def test_a_model_that_is_2_of_4_already_goes_on_from_its_mask(prune: Any) -> None:
    config = BiDSTConfig(pattern="2:4", distribution="as_pruned", topology="static")
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj' has 4 weights that are not zero among 4"):
        get_peft_model(llama(), config)
    model = llama()
    prune(model, [IDS], pattern="2:4")
    name = "model.layers.1.mlp.up_proj"
    weight = model.get_submodule(name).weight.data
    weight[0, :4] = torch.tensor([0.0, 0.0, 3.0, 0.0])  # fewer are allowed
    zeros = weight == 0
    tuned = get_peft_model(model, BiDSTConfig(pattern="2:4", distribution="as_pruned", topology="static"))
    assert tuned.peft_config["default"].sparsity == 0.5
    assert all(active_of_groups(mask) == [2] for mask in masks(tuned))
    few_steps(tuned)
    trained = tuned.merge_and_unload().get_submodule(name).weight
    assert active_of_groups(trained) == [2]
    assert torch.equal((trained == 0)[1:], zeros[1:])


@EACH
def test_saved_and_loaded_it_is_the_same_model(topology: str, tmp_path: Path) -> None:
    settings = {"pattern": "2:4", "topology": topology, "task_type": "CAUSAL_LM"}
    model = get_peft_model(llama(), BiDSTConfig(**settings))
    few_steps(model)
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (written["pattern"], written["sparsity"]) == ("2:4", 0.5)
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    assert torch.equal(logits(loaded), expected)
    merged = loaded.merge_and_unload()
    if topology != "gmp":  # it is dense at first
        assert active_of_groups(merged.model.layers[0].self_attn.q_proj.weight) == [2]
    save_sparse(merged, tmp_path / "sparse")
    assert torch.equal(logits(load_sparse(tmp_path / "sparse")), expected)


def test_files_that_break_the_pattern_are_refused(tmp_path: Path) -> None:
    model = get_peft_model(llama(), BiDSTConfig(pattern="2:4", topology="static", task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, values = load_file(file), json.loads(config.read_text())
    key = next(name for name in tensors if name.endswith("q_proj.bidst_weight.indices"))
    free = sorted(set(range(1024)) - set(tensors[key].tolist()))
    moved = {**tensors, key: torch.cat([tensors[key][1:], torch.tensor(free[-1:], dtype=torch.int32)])}
    save_file(moved, file)
    config.write_text(json.dumps({**values, "checksum": None}))
    with pytest.raises(ValueError, match=r"q_proj: .* a group of 4 inputs has 1 active weights, expected 2"):
        PeftModel.from_pretrained(llama(), tmp_path)
    layer = key.removeprefix("base_model.model.").removesuffix(".bidst_weight.indices")
    value = key.replace("indices", "values")
    save_file({**tensors, key: tensors[key][:-1], value: tensors[value][:-1]}, file)
    config.write_text(json.dumps({**values, "checksum": None, "counts": {**values["counts"], layer: 511}}))
    with pytest.raises(ValueError, match=r"q_proj'=511 is out of range; by its pattern the layer has 512 active"):
        PeftModel.from_pretrained(llama(), tmp_path)


RANK_PROGRAM = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from hf_efficient import train_sparsely
from tests.sparsity.loops import batches, trainable
from tests.sparsity.tuner.test_patterns import masks, network

dist.init_process_group("gloo")
result = {}
for topology in ("bidst", "rigl", "set"):
    inner = network(topology)
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.Adam(trainable(inner), lr=0.01)
    training = train_sparsely(inner, optimizer, total_steps=20)
    for x, y in batches(20):
        x, y = x.chunk(2)[dist.get_rank()], y.chunk(2)[dist.get_rank()]
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    result[topology] = masks(inner), training.report()["mask_updates"]
torch.save(result, f"{sys.argv[1]}.{dist.get_rank()}")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_have_one_mask_that_is_that_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(RANK_PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--rdzv-endpoint=localhost:0", "program.py", "result"],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"result.{rank}", weights_only=True) for rank in range(2)]
    for topology, (found, updates) in ranks[0].items():
        assert updates >= 2
        assert all(torch.equal(a, b) for a, b in zip(found, ranks[1][topology][0], strict=True))
        assert all(active_of_groups(mask) == [2] for mask in found)
        alone = network(topology)
        optimizer = torch.optim.Adam(trainable(alone), lr=0.01)
        train_sparsely(alone, optimizer, total_steps=20)
        run(alone, optimizer, batches(20))
        same = sum(int((a & b).sum()) for a, b in zip(found, masks(alone), strict=True))
        assert same / sum(int(mask.sum()) for mask in found) > 0.99  # sums in another order may decide a tie otherwise


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "4:2"}, "pattern='4:2' is out of range; expected 'N:M'"),
        ({"pattern": 2}, "pattern=2 is out of range"),
        ({"pattern": "2:4", "sparsity": 0.9}, "sparsity=0.9 contradicts pattern='2:4', which makes it 0.5"),
        ({"pattern": "2:4", "distribution": "uniform"}, "distribution='uniform' is read only with pattern=None"),
        ({"pattern": "2:4", "distribution": "global"}, "distribution='global' is read only with pattern=None"),
        ({"pattern": "2:4", "target": "delta"}, "pattern='2:4' is read only with target='weight'"),
        ({"pattern": "2:4", "distribution": "as_pruned", "topology": "gmp"}, "distribution='as_pruned' keeps"),
    ],
)
def test_settings_that_contradict_a_pattern_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiDSTConfig(**settings)


def test_sparsity_is_what_the_pattern_says() -> None:
    assert BiDSTConfig(pattern="1:4").sparsity == 0.75
    assert BiDSTConfig(pattern="1:3", sparsity=2 / 3).sparsity == pytest.approx(2 / 3)
    config = BiDSTConfig(pattern="2:4", distribution="as_pruned", topology="static")
    assert BiDSTConfig(**config.to_dict()) == config


def test_a_layer_that_groups_do_not_fill_leaves_the_model_as_it_was() -> None:
    model = llama()
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.q_proj' has 32 inputs, .*pattern '3:5'"):
        get_peft_model(model, BiDSTConfig(pattern="3:5"))
    assert not layers(model)
