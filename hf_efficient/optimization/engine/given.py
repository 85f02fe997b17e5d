"""What is given from outside, distances and losses: checked in one wording, before anything moves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_efficient.reading import shown


def checked_distance(name: str, value: Any, expected: str, above: bool = False) -> float:
    """A distance as a number: of Python, numpy, or a tensor that holds one.

    Args:
        name: what the message begins with.
        value: what was given.
        expected: what the message says after "expected".
        above: exclude 0 itself.

    Raises:
        ValueError: it is no finite number >= 0, or > 0.
    """
    try:
        distance = float("nan") if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError):
        distance = float("nan")
    if not 0 <= distance < float("inf") or (above and distance == 0):
        raise ValueError(f"{name}={shown(value)} is out of range; expected {expected}.")
    return distance


def checked_loss(where: str, loss: Any, *others: type, graph: bool = False) -> Any:
    """A loss, as a function of the user's returned it.

    Args:
        where: what the message begins with.
        loss: what was returned.
        others: types that are taken beside a tensor.
        graph: whether it will be followed backward.

    Raises:
        ValueError: it is none of these types, not one real value, or lacks the graph.
    """
    if not isinstance(loss, (Tensor, *others)):
        raise ValueError(f"{where}: the function must return the loss, a tensor; it returned {shown(loss)}.")
    if isinstance(loss, Tensor) and (loss.numel() != 1 or loss.is_complex()):
        raise ValueError(f"{where}: the function must return the loss, one value that is real; it returned a tensor of "
                         f"shape {tuple(loss.shape)} and {loss.dtype}. Return its .mean() or .sum().")  # fmt: skip
    if graph and not (isinstance(loss, Tensor) and loss.requires_grad):
        raise ValueError(f"{where}: the loss that the function returned has no graph, so that no gradient follows from "
                         "it. Return it as the model gave it, without .detach() and torch.no_grad(), of weights that "
                         "require gradients.")  # fmt: skip
    return loss
