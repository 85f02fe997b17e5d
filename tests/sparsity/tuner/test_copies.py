"""Copied, pickled, compiled and replicated models work, or are refused."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from hf_efficient import compress, train_sparsely
from tests.sparsity.loops import batches, classifier, run, trainable, weights_of


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trainable(model), lr=0.1, momentum=0.9)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = list(zip(weights_of(a), weights_of(b)))
    return all(torch.equal(x.indices, y.indices) and torch.equal(x.values, y.values) for x, y in pairs)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_of_a_model_in_training_goes_on_by_itself(how: str) -> None:
    model = classifier(topology="rigl", backend="csr")
    optimizer = sgd(model)
    training = train_sparsely(model, optimizer, 40)
    run(model, optimizer, batches(10))
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))  # ours, a moment ago
    other = sgd(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train_sparsely(twin, other, 40)
    run(twin, other, batches(10, seed=2))
    assert training.steps == 10
    run(model, optimizer, batches(10, seed=2))
    assert same(model, twin)
    assert training.report()["mask_updates"] == 5


def test_a_copy_without_an_engine_says_so() -> None:
    model = classifier(topology="rigl")
    optimizer = sgd(model)
    train_sparsely(model, optimizer, 40)
    run(model, optimizer, batches(10))
    twin, other = copy.deepcopy((model, optimizer))  # hooks of an optimizer are not copied
    with pytest.warns(UserWarning, match="train_sparsely") as said:
        run(twin, other, batches(12))
    assert len([w for w in said if "train_sparsely" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, optimizer, batches(12))


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
def test_an_engine_is_not_copied(how: Any) -> None:
    model = classifier()
    training = train_sparsely(model, sgd(model), 40)
    with pytest.raises(TypeError, match=r"belongs to its optimizer.*call train_sparsely"):
        how(training)


@pytest.mark.parametrize("backend", ["auto", "csr"])
def test_a_compiled_model_trains_as_the_plain_one(backend: str) -> None:
    torch._dynamo.reset()
    model = classifier(topology="rigl", backend=backend)
    twin = copy.deepcopy(model)
    compiled: Any = torch.compile(twin, backend="aot_eager")
    for net, trained in ((model, model), (compiled, twin)):
        optimizer = sgd(trained)
        training = train_sparsely(net, optimizer, 20)
        run(net, optimizer, batches(20))
        assert training.report()["mask_updates"] == 3
    for a, b in zip(weights_of(model), weights_of(twin)):
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.values, b.values)


def test_compressed_models_compile_and_are_copied() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    with torch.no_grad():
        net[0].weight *= torch.rand(64, 64) < 0.1
    x = torch.randn(5, 64)
    compressed = compress(copy.deepcopy(net), backend="csr")
    assert type(compressed[0]) is not nn.Linear
    expected = compressed(x)
    torch.testing.assert_close(expected, net(x))
    assert torch.equal(copy.deepcopy(compressed)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(compressed))(x), expected)  # ours, a moment ago
    torch.testing.assert_close(torch.compile(compressed, backend="aot_eager")(x), expected)


def test_data_parallel_over_several_devices_is_refused_where_gradients_would_be_lost() -> None:
    model = classifier(topology="rigl")
    wrapped = nn.DataParallel(model)
    optimizer = sgd(model)
    training = train_sparsely(wrapped, optimizer, 20)  # on a CPU it is the model itself
    run(wrapped, optimizer, batches(20))
    assert training.report()["mask_updates"] == 3
    wrapped.device_ids = [0, 1]
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        train_sparsely(wrapped, optimizer, 20)
    weight = weights_of(model)[0]
    replica: Any = weight._replicate_for_data_parallel()
    replica.values, replica.indices = weight.values, weight.indices
    assert torch.equal(replica.dense(), weight.dense())
    replica.collecting = True
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        replica.dense()
    static = nn.DataParallel(classifier(topology="static"))
    static.device_ids = [0, 1]
    train_sparsely(static, sgd(static), 20)  # needs no gradients of inactive weights
