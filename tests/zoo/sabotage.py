"""Pairs of the zoo with one thing gone wrong."""

from collections.abc import Callable
from typing import Any

from . import stock


def sabotaged(name: str, **methods: Callable[..., Any]) -> tuple[Any, Any]:
    """A pair whose base model has these methods, each a function of the model, its stock class and the arguments."""
    model, processor = stock(name)
    base: Any = model.base_model
    cls = type(base)

    def bound(change: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: change(self, cls, *args, **kwargs)

    base.__class__ = type(cls.__name__, (cls,), {name: bound(change) for name, change in methods.items()})
    for function in methods:  # signatures are looked at
        getattr(type(base), function).__wrapped__ = getattr(cls, function)
    return model, processor
