"""Flatness against closed forms: on a quadratic all of it is known."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_efficient import sharpness
from hf_efficient.optimization.sharpness import loss_along, plot_landscape, top_hessian_eigenvalue
from tests.optimization.training.trainers import bert, rows, same, state


class Bowl(nn.Module):
    """L(w) = 1/2 w' A w."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        root = torch.randn(6, 6, dtype=torch.float64)
        self.a = root @ root.T
        self.w = nn.Parameter(torch.randn(6, dtype=torch.float64))

    def forward(self, scale: float) -> dict[str, Tensor]:
        return {"loss": scale * self.w @ self.a @ self.w / 2}


BATCHES = [{"scale": 0.5}, {"scale": 1.5}]  # whose mean is the bowl itself


def test_sharpness_of_a_quadratic() -> None:
    bowl = Bowl()
    w, a = bowl.w.detach(), bowl.a
    step = 0.1 * a @ w / (a @ w).norm()
    expected = ((w + step) @ a @ (w + step) - w @ a @ w) / 2
    assert sharpness(bowl, BATCHES, rho=0.1) == pytest.approx(expected.item(), rel=1e-9)
    t = w.abs()
    step = 0.1 * t**2 * (a @ w) / (t * (a @ w)).norm()
    expected = ((w + step) @ a @ (w + step) - w @ a @ w) / 2
    assert sharpness(bowl, BATCHES, rho=0.1, adaptive=True) == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(bowl.w, w)
    assert bowl.w.grad is None


def test_rho_may_be_a_tensor_or_a_number_of_numpy() -> None:
    for rho in (torch.tensor([0.1], dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64), np.float64(0.1)):
        assert sharpness(Bowl(), BATCHES, rho=rho) == sharpness(Bowl(), BATCHES, rho=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "measure", [sharpness, top_hessian_eigenvalue, lambda *given: loss_along(given[0], given[1], [0.1])]
)
@pytest.mark.parametrize("given", [None, "a/folder", Bowl])
def test_what_is_no_model_is_named(measure: Any, given: Any) -> None:
    with pytest.raises(TypeError, match=r"^model=.* is not a model; expected a torch.nn.Module"):
        measure(given, BATCHES)


def test_what_gives_no_loss_is_named() -> None:
    batch = {"input_ids": torch.stack([r["input_ids"] for r in rows(2)])}
    model = bert()
    with pytest.raises(ValueError, match=r"A batch is 'input_ids'; expected a mapping .*data=\[batch\]"):
        sharpness(model, batch)
    with pytest.raises(ValueError, match=r"returned no loss for \['input_ids'\]; expected a batch with labels"):
        sharpness(model, [batch])
    with pytest.raises(ValueError, match=r"no graph.*weights that require gradients"):
        sharpness(Bowl().requires_grad_(False), BATCHES)
    with pytest.raises(ValueError, match="it returned ") as raised:
        sharpness(model, [batch], loss_of=lambda model, batch: model(**batch))
    assert len(str(raised.value)) < 400


def test_top_hessian_eigenvalue_of_a_quadratic() -> None:
    bowl = Bowl()
    expected = torch.linalg.eigvalsh(bowl.a)[-1].item()
    assert top_hessian_eigenvalue(bowl, BATCHES, steps=200, tolerance=1e-9) == pytest.approx(expected, rel=1e-4)


def test_fused_attention_has_the_eigenvalue_of_eager_attention() -> None:
    batch = {"input_ids": torch.stack([r["input_ids"] for r in rows(8)]), "labels": torch.arange(8) % 3}
    found = []
    for attention in ("sdpa", "eager"):
        model = bert()
        model.set_attn_implementation(attention)
        found.append(top_hessian_eigenvalue(model, [batch], steps=10))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_transformers_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = bert()
    model.config._attn_implementation = "eager"
    batch = {"input_ids": torch.stack([r["input_ids"] for r in rows(8)]), "labels": torch.arange(8) % 3}
    model(**batch)["loss"].backward()
    before, gradient = state(model), model.classifier.weight.grad.clone()
    assert sharpness(model, [batch], rho=0.05) > 0
    assert top_hessian_eigenvalue(model, [batch], steps=3) != 0
    curves = loss_along(model, [batch], [-0.1, 0.0, 0.1])
    with torch.no_grad():
        here = model.eval()(**batch)["loss"].item()
    assert curves["gradient"][1] == pytest.approx(here, rel=1e-6)
    assert curves["gradient"][0] < curves["gradient"][1] < curves["gradient"][2]
    model.train()
    assert same(before, state(model))
    assert torch.equal(model.classifier.weight.grad, gradient)
    plot_landscape({"bert": curves}, [-0.1, 0.0, 0.1], str(tmp_path / "landscape.png"))
    assert (tmp_path / "landscape.png").stat().st_size > 5000


def test_errors() -> None:
    with pytest.raises(ValueError, match="rho=0"):
        sharpness(Bowl(), BATCHES, rho=0)
    with pytest.raises(ValueError, match="rho='far' is out of range; expected a finite number > 0"):
        sharpness(Bowl(), BATCHES, rho="far")  # type: ignore[arg-type]
    measures: list[Any] = [sharpness, top_hessian_eigenvalue, functools.partial(loss_along, distances=[0.1])]
    for measured in measures:
        with pytest.raises(ValueError, match="No data"):
            measured(Bowl(), [])
        with pytest.raises(ValueError, match=r"loss_of: .*one value.*shape \(6,\)"):
            measured(Bowl(), BATCHES, loss_of=lambda bowl, batch: bowl.w)
        with pytest.raises(ValueError, match=r"loss_of: .*no graph"):
            measured(Bowl(), BATCHES, loss_of=lambda bowl, batch: bowl(**batch)["loss"].detach())
