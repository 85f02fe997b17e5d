"""Wanda and SparseGPT against brute force and closed forms."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_efficient import BiDSTConfig, keep_sparsity, prune_sparsegpt, prune_wanda
from hf_efficient.sparsity.pattern import NMPattern
from hf_efficient.sparsity.pruned.sparsegpt import prune_layer
from tests.sparsity.models import IDS, few_steps, gpt2, llama

BOTH = pytest.mark.parametrize("prune", [prune_wanda, prune_sparsegpt])


def inputs_of(model: nn.Module, layer: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """(tokens, inputs), padding left out."""
    seen = []
    handle = layer.register_forward_hook(lambda _, x, __: seen.append(x[0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, batches, strict=True)])


def batches() -> list[dict[str, Tensor]]:
    mask = torch.ones_like(IDS)
    mask[0, 5:] = 0
    return [{"input_ids": IDS, "attention_mask": mask}, {"input_ids": IDS + 1, "attention_mask": torch.ones_like(IDS)}]


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_wanda_is_brute_force_over_rows(pattern: str | None) -> None:
    model = llama()
    truth: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if "_proj" in name:
            norms = inputs_of(model, layer, batches()).norm(dim=0)
            weight = layer.weight.detach().clone()  # type: ignore[operator,union-attr]
            for row in weight:
                group = len(row) if pattern is None else 4
                for start in range(0, len(row), group):
                    scores = [(abs(float(row[j])) * float(norms[j]), j) for j in range(start, start + group)]
                    for _, j in sorted(scores)[: group // 2]:
                        row[j] = 0.0
            truth[name] = weight
    prune_wanda(model, batches(), pattern=pattern)
    assert len(truth) == 14
    for name, weight in truth.items():
        assert torch.equal(model.get_submodule(name).weight, weight), name
    assert torch.equal(model.lm_head.weight, llama().lm_head.weight)


def test_conv1d_is_pruned_by_its_outputs() -> None:
    model = gpt2()
    prune_wanda(model, [IDS], sparsity=0.75)
    weight = model.transformer.h[0].attn.c_attn.weight  # (inputs, outputs)
    assert torch.equal((weight == 0).sum(0), torch.full((96,), 24))


def one_column_after_another(weight: Tensor, hessian: Tensor, share: float, m: int | None) -> Tensor:
    """SparseGPT from its definition: each pruned entry is compensated by least squares over the columns right of it."""
    w, n = weight.double().clone(), weight.shape[1]
    h = hessian.double()
    h = h + 0.01 * h.diagonal().mean() * torch.eye(n)
    # [H_F^-1]_jj, F being the columns from j on
    d = torch.stack([torch.linalg.inv(h[j:, j:])[0, 0] for j in range(n)])
    mask = torch.zeros_like(w, dtype=torch.bool)
    if m is None:
        score = w.square() / d
        mask = score <= score.flatten().sort().values[int(share * score.numel()) - 1]
    for j in range(n):
        if m is not None and j % m == 0:
            score = w[:, j : j + m].square() / d[j : j + m]
            mask[:, j : j + m] = score.argsort(1).argsort(1) < m // 2
        for row in range(len(w)):
            if mask[row, j]:
                right = slice(j + 1, n)
                if j + 1 < n:
                    w[row, right] += torch.linalg.solve(h[right, right], h[right, j]) * w[row, j]
                w[row, j] = 0.0
    return w


@pytest.mark.parametrize("m", [None, 4])
def test_sparsegpt_is_least_squares_column_after_column(m: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    weight = torch.randn(6, 16, generator=generator)
    hessian = x.T @ x / len(x)
    truth = one_column_after_another(weight, hessian, 0.5, m)
    block = 16 if m is None else 8  # a pattern is the same in blocks of any size
    found = prune_layer(weight, hessian, 0.5, None if m is None else NMPattern(2, 4), block=block)
    assert torch.equal(found == 0, truth == 0)
    assert torch.allclose(found.double(), truth, atol=1e-4)
    plain = torch.where(truth == 0, 0.0, weight.double())
    assert ((found - weight) @ x.T).square().sum() < ((plain - weight) @ x.T.double()).square().sum()


def test_a_single_pruned_weight_is_that_of_the_optimal_brain_surgeon() -> None:
    """delta = -w_q / [H^-1]_qq H^-1_q, for the first column, which has all others right of it."""
    hessian = torch.tensor([[2.0, 0.5, 0.3], [0.5, 1.0, 0.2], [0.3, 0.2, 3.0]])
    weight = torch.tensor([[0.1, 2.0, -3.0]])
    inverse = torch.linalg.inv(hessian)
    found = prune_layer(weight, hessian, 0.34, damping=1e-9)
    assert torch.allclose(found, weight - weight[0, 0] / inverse[0, 0] * inverse[0], atol=1e-5)
    assert float(found[0, 0]) == 0.0


def test_an_input_that_is_never_used_is_pruned_away() -> None:
    hessian = torch.diag(torch.tensor([1.0, 0.0, 2.0, 1.0]))
    assert bool((prune_layer(torch.randn(5, 4), hessian, 0.25)[:, 1] == 0).all())


def test_sparsegpt_changes_the_outputs_of_a_layer_less_than_wanda() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    errors = []
    for prune in (prune_wanda, prune_sparsegpt):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 20))
        with torch.no_grad():
            expected = model(x)
            prune(model, [x[:200]], sparsity=0.5)
            errors.append(float((model(x[200:]) - expected[200:]).square().mean()))
        assert keep_sparsity(model).sparsity == 0.5
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("prune", [prune_wanda, prune_sparsegpt])
def test_layers_are_pruned_in_groups_and_then_trained_with_keep_sparsity(
    prune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_efficient.sparsity.pruned.sparsegpt.HESSIANS", 3 * 32 * 32)
    model = llama()
    prune(model, batches(), sparsity=0.5)
    kept = keep_sparsity(model)
    assert kept.sparsity == pytest.approx(0.5 * 14 * 32 / (14 * 32 + 64), abs=0.1)  # the head is whole
    few_steps(model)
    kept.check()


def test_pruned_by_wanda_then_trained_by_bidst() -> None:
    model = llama()
    prune_wanda(model, iter(batches()), sparsity=0.75)
    zeros = model.model.layers[0].mlp.up_proj.weight == 0
    tuned = get_peft_model(model, BiDSTConfig(distribution="as_pruned", topology="static"))
    few_steps(tuned)
    assert torch.equal(tuned.merge_and_unload().model.layers[0].mlp.up_proj.weight == 0, zeros)


@BOTH
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1\.0 is out of range"),
        ({"pattern": "4:4"}, "pattern='4:4' is out of range; expected 'N:M'"),
        ({"pattern": "2:4", "sparsity": 0.5}, "sparsity=0.5 is not read with pattern='2:4'"),
        ({"pattern": "3:5"}, "has 32 inputs, which pattern '3:5' does not divide"),
        ({"target_modules": ["query"]}, "No layer to prune is named 'query'"),
        ({"target_modules": ["q_proj", "o_prj"]}, "No layer to prune is named 'o_prj'"),
        ({"exclude_modules": ["down_prj"]}, "No layer to prune is named 'down_prj'"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "found no linear layer"),
    ],
)
def test_wrong_settings_are_refused(prune: Any, settings: dict[str, Any], message: str) -> None:
    if prune is prune_sparsegpt:
        settings = {**settings, "block": 15}
        message = f"{message}|block=15 is out of range"
    with pytest.raises(ValueError, match=message):
        prune(llama(), batches(), **settings)


@BOTH
def test_what_is_never_pruned_may_be_excluded(prune: Any) -> None:
    plain, excluding = llama(), llama()
    excluding.load_state_dict(plain.state_dict())
    prune(plain, batches())
    prune(excluding, batches(), exclude_modules=["embed_tokens", "norm", "lm_head"])  # a list shared with other tools
    for a, b in zip(plain.parameters(), excluding.parameters(), strict=True):
        assert torch.equal(a, b)


@BOTH
def test_what_cannot_be_pruned_is_refused(prune: Any) -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        prune(llama(), [])
    for one in ({"input_ids": IDS}, IDS, "text"):
        with pytest.raises(ValueError, match=r"batches is one (dict|Tensor|str).*\[batch\]"):
            prune(llama(), one)
    with pytest.raises(ValueError, match="was not called with any token"):
        prune(llama(), [{"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}])
    with pytest.raises(ValueError, match="has an adapter"):
        prune(get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])), batches())
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="are not finite"):
        prune(model, [torch.full((2, 4), torch.nan)])
    assert model.training


@BOTH
def test_a_part_in_evaluation_mode_stays_in_it(prune: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout().eval())
    prune(model, [torch.randn(8, 4)], target_modules=["0"])
    assert [module.training for module in model] == [True, False]
    assert model.training


def test_a_view_of_a_transposed_weight_is_pruned_as_its_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    stored, x = torch.randn(8, 5, generator=generator), torch.randn(50, 8, generator=generator)  # as Conv1D stores it
    found, expected = (prune_layer(weight, x.T @ x / 50, 0.5) for weight in (stored.T, stored.T.contiguous()))
    assert torch.equal(found, expected)
    assert int((found == 0).sum()) == 20
