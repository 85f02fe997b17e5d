"""Same-named subclasses for attached models and processors, which copy, pickle and save as what they are."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

from hf_efficient.compat.accelerate import refresh_held_forward
from hf_efficient.compat.torch import replicates
from hf_efficient.files import clear_errors
from hf_efficient.representation.config import TokenPrunerConfig

from . import card


class Attached:
    """What all attached objects share."""

    stock_class: ClassVar[type]
    mixin: ClassVar[type]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # what is built anew, as by from_pretrained on the class, is stock until a pruner is attached to it; but a
        # module without arguments is an empty one that DataParallel asks for, to make a replica of it
        if replicates(cls) and not args and not kwargs:
            return object.__new__(cls)
        return cls.stock_class(*args, **kwargs)

    @classmethod
    def overrides(cls, stock: Any) -> dict[str, Any]:
        """Attributes of the subclass that are made from those of its stock class."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        # a class made at run time cannot be found by name: pickle the stock class and make it again
        rest = object.__reduce_ex__(self, 2)[2:]
        return new_attached, (self.stock_class, self.mixin), *rest


@functools.cache
def attached_class(stock: Any, mixin: Any) -> type:
    """The subclass of a stock class with a mixin before it; one per pair, so that attached objects are of one type.

    It has the name of the stock class, since transformers writes class names into the files it saves.
    """
    names = {"__module__": stock.__module__, "__qualname__": stock.__qualname__, "__doc__": stock.__doc__}
    return type(
        stock.__name__, (mixin, stock), {**names, "stock_class": stock, "mixin": mixin, **mixin.overrides(stock)}
    )


def new_attached(stock: type, mixin: type) -> Any:
    """An empty object of an attached class, for pickle and copy to fill."""
    return object.__new__(attached_class(stock, mixin))


def stock_class_of(thing: Any) -> type:
    """The class of an object without a pruner, whether or not it has one."""
    return getattr(type(thing), "stock_class", type(thing))


@contextmanager
def as_stock(*things: Any) -> Iterator[None]:
    """For a while, things that may be attached have their stock classes."""
    attached = [(thing, type(thing)) for thing in things if isinstance(thing, Attached)]
    try:
        for thing, cls in attached:
            set_class(thing, cls.stock_class)
        yield
    finally:
        for thing, cls in attached:
            set_class(thing, cls)


def set_class(thing: Any, new: type) -> None:
    """Change an object's class; where accelerate holds a module's forward in the instance, change that too."""
    thing.__class__ = new
    refresh_held_forward(thing, new)


_WHOLE: ContextVar[Any] = ContextVar("whole_features", default=None)


@contextmanager
def whole_features(base: Any) -> Iterator[None]:
    """Inside the block, in this thread, the feature functions of a (base) model prune nothing.

    Some stock models encode videos with their function for images, whose features would be pruned before their time.
    """
    token = _WHOLE.set(base)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def prunes_nothing(base: Any) -> bool:
    """Whether this thread is inside `whole_features` of a (base) model."""
    return _WHOLE.get() is base


class Saved(Attached):
    """Writes the pruner's config beside the stock files."""

    def _pruner_config(self) -> TokenPrunerConfig:
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        stock: Any = super()
        arguments = inspect.signature(stock.save_pretrained).bind(save_directory, *args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        push = arguments.pop("push_to_hub", False)
        hub = {k: arguments.pop(k) for k in HUB_ARGUMENTS if push and k in arguments}
        with clear_errors(save_directory):
            result = stock.save_pretrained(**arguments)
        if arguments.get("is_main_process", True):
            self._pruner_config().save_pretrained(save_directory)
            if hasattr(self, "base_model"):  # of a processor there is nothing to say
                card.write(Path(save_directory), self, self._pruner_config())
        if push:  # the stock method would upload before the pruner's config is there
            hub.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
            if "token" in arguments:
                hub["token"] = arguments["token"]
            self.push_to_hub(**hub)  # type: ignore[attr-defined]
        return result


HUB_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
