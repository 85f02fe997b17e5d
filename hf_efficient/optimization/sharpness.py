"""How flat a minimum is: SAM sharpness, the top Hessian eigenvalue, and the loss along a direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_efficient.checks import check_model
from hf_efficient.extras import extra
from hf_efficient.files import written_whole
from hf_efficient.modes import evaluating
from hf_efficient.optimization.engine.given import checked_distance, checked_loss
from hf_efficient.optimization.engine.perturbation import Direction, Scaling, Weights, dot, global_norm
from hf_efficient.optimization.variants.asam import asam_scaling
from hf_efficient.reading import shown

LossOf = Callable[[nn.Module, Any], Tensor]


def sharpness(
    model: nn.Module, data: Iterable[Any], rho: float = 0.05, *, adaptive: bool = False, loss_of: LossOf | None = None
) -> float:
    """L(w + ρ ∇L(w)/‖∇L(w)‖) - L(w), the first-order SAM sharpness (Foret et al., arXiv 2010.01412, Eq. 1 and 2).

    The gradient and both losses are means over all batches, in evaluation mode. Afterwards the model is as before: its
    weights to the bit, its gradients, its mode.

    Args:
        model: any; the trainable weights are moved (active entries only, where a sparsity mask exists).
        data: batches, gone through twice, so a list or a DataLoader without shuffling; each counts the same.
        rho: distance, > 0. Compare values at one rho only, and of one architecture only: the measure is not invariant
            to rescaling of the weights, unless `adaptive`.
        adaptive: ASAM's distance, in units of each weight's size.
        loss_of: scalar loss of (model, batch); by default `model(**batch)["loss"]`, as transformers models return it.

    Raises:
        TypeError: `model` is no model.
        ValueError: rho <= 0, no data, or a loss that is not one real value with a graph.
    """
    distance = checked_distance("rho", rho, "a finite number > 0", above=True)
    weights, batches, loss_of = _taken(model, data, loss_of, asam_scaling if adaptive else None)
    with evaluated(model, weights):
        before = _mean_loss(model, batches, loss_of, backward=True)
        with weights.moved(weights.pack(weights.take_gradients()), distance):
            return _mean_loss(model, batches, loss_of) - before


def top_hessian_eigenvalue(
    model: nn.Module, data: Iterable[Any], *, steps: int = 20, tolerance: float = 1e-3, loss_of: LossOf | None = None,
    seed: int = 0,
) -> float:  # fmt: skip
    """The Hessian eigenvalue of largest size at the current weights, by power iteration with exact products H v.

    Args:
        model: any whose operations can be differentiated twice (torch's own attention can: its plain form is used).
        data: batches, as for `sharpness`; every step goes through all of them.
        loss_of: as for `sharpness`.
        steps: products H v at most.
        tolerance: relative change of the estimate at which it stops.
        seed: of the first direction.

    Raises:
        TypeError: `model` is no model.
        ValueError: no data, or a loss that is not one real value with a graph.
    """
    weights, batches, loss_of = _taken(model, data, loss_of)
    v = _unit(_random_direction(weights, seed))
    value = 0.0
    with evaluated(model, weights), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        for _ in range(steps):
            product = _hessian_product(model, batches, loss_of, weights, v)
            last, value = value, dot(v, product)
            if global_norm(product) == 0 or abs(value - last) <= tolerance * abs(value):
                break
            v = _unit(product)
    return value


def loss_along(
    model: nn.Module, data: Iterable[Any], distances: Sequence[float], *, loss_of: LossOf | None = None, seed: int = 0
) -> dict[str, list[float]]:
    """The mean loss at w + t d for every distance t: along the gradient ("gradient") and along a random direction whose
    parameters have the norms of the weights (Li et al., 2018, arXiv 1712.09913; "random"), both of unit length.
    """
    weights, batches, loss_of = _taken(model, data, loss_of)
    curves: dict[str, list[float]] = {}
    with evaluated(model, weights):
        _mean_loss(model, batches, loss_of, backward=True)
        random = _random_direction(weights, seed)
        normed = {p: d * (weights.values(p, p).norm() / d.norm().clamp_min(1e-12)).detach() for p, d in random.items()}
        for name, direction in (("gradient", weights.pack(weights.take_gradients())), ("random", normed)):
            curves[name] = []
            for distance in distances:
                with weights.moved(direction, distance):
                    curves[name].append(_mean_loss(model, batches, loss_of))
    return curves


def plot_landscape(curves: Mapping[str, Mapping[str, Sequence[float]]], distances: Sequence[float], path: str) -> None:
    """Draw the curves of `loss_along`, a panel per direction and a line per model, into an image file.

    Args:
        curves: name of a model -> what `loss_along` returned for it.
        distances: those it was called with.
        path: of the image file. Needs matplotlib.
    """
    with extra("plots"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    directions = list(next(iter(curves.values())))
    figure = Figure(figsize=(4.2 * len(directions), 3.4), layout="constrained")
    for axis, direction in zip(figure.subplots(1, len(directions), squeeze=False)[0], directions, strict=True):
        for name, of in curves.items():
            axis.plot(distances, of[direction], label=name)
        axis.set(title=f"along the {direction} direction", xlabel="distance", ylabel="loss", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=8)
    target = Path(path)
    with written_whole(target if target.suffix else target.with_suffix(".png")) as draft:
        figure.savefig(draft, dpi=150)


def loss_of_batch(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a transformers model returns for a batch with labels.

    Raises:
        ValueError: the batch is no mapping, or has no labels.
    """
    if not hasattr(batch, "keys"):
        raise ValueError(f"A batch is {shown(batch)}; expected a mapping that the model is called with: data=[batch] "
                         "if there is one, or loss_of=... of your own.")  # fmt: skip
    output = model(**batch)
    try:
        loss: Tensor = output["loss"]
    except KeyError as error:
        raise ValueError(f"The model returned no loss for {shown(list(batch.keys()))}; expected a batch with labels, "
                         "or loss_of=... of your own.") from error  # fmt: skip
    return loss


@contextmanager
def evaluated(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; the mode and the gradients from before after it."""
    gradients = weights.take_gradients()
    try:
        with evaluating(model):
            yield
    finally:
        for p in weights.parameters:
            p.grad = gradients.get(p)


def _taken(
    model: nn.Module, data: Iterable[Any], loss_of: LossOf | None, scaling: Scaling | None = None
) -> tuple[Weights, Sequence[Any], LossOf]:
    """The weights of a model, batches to measure on, and the loss, after checks of all three."""
    check_model(model)
    batches = data if isinstance(data, Sequence) else list(data)
    if not batches:
        raise ValueError("No data to measure on; pass at least one batch.")
    return Weights(model.parameters(), scaling), batches, loss_of or loss_of_batch


def _mean_loss(model: nn.Module, batches: Sequence[Any], loss_of: LossOf, backward: bool = False) -> float:
    total = 0.0
    for batch in batches:
        with torch.set_grad_enabled(backward):
            loss = checked_loss("loss_of", loss_of(model, batch), graph=backward) / len(batches)
        if backward:
            loss.backward()
        total += float(loss.detach())
    return total


def _hessian_product(
    model: nn.Module, batches: Sequence[Any], loss_of: LossOf, weights: Weights, v: Direction
) -> dict[Tensor, Tensor]:
    dense = weights.unpack(v)
    product = {p: torch.zeros_like(p) for p in weights.parameters}
    for batch in batches:
        loss = checked_loss("loss_of", loss_of(model, batch), graph=True) / len(batches)
        gradients = torch.autograd.grad(loss, weights.parameters, create_graph=True, allow_unused=True)
        used = [(p, g) for p, g in zip(weights.parameters, gradients, strict=True) if g is not None and g.requires_grad]
        slope = torch.stack([(g * dense[p]).sum() for p, g in used]).sum()
        for (p, _), part in zip(used, torch.autograd.grad(slope, [p for p, _ in used], allow_unused=True), strict=True):
            if part is not None:
                product[p] += part.detach()
    return weights.pack(product)


def _random_direction(weights: Weights, seed: int) -> dict[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        p: torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)
        for p in weights.parameters
        for like in (weights.values(p, p).detach(),)
    }


def _unit(direction: Direction) -> dict[Tensor, Tensor]:
    norm = global_norm(direction)
    return {p: d / norm for p, d in direction.items()}
