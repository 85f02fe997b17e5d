"""Every method of the table, called by its name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.selection import Covered, generates

METHODS = REPRESENTATION.names
GENERATORS: dict[str, Callable[..., Any]] = {
    name: REPRESENTATION.row(name).implementation for name in METHODS if generates(name)
}


def order_of(method: str) -> Callable[..., Tensor]:
    """A method that selects, as a function to the tokens in the order taken."""

    def select(*args: Any, **kwargs: Any) -> Tensor:
        made: Tensor | Covered = REPRESENTATION.row(method).implementation(*args, **kwargs)
        return made.order if isinstance(made, Covered) else made

    return select


SELECTORS = {name: order_of(name) for name in METHODS if not generates(name)}
