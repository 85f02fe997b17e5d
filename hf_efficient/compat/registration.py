"""What makes others' loaders know our classes, done when those libraries are imported, before or after us.

`import hf_efficient` imports neither torch nor PEFT nor transformers. But the program may ask any of them
for one of our models by what its files say (`AutoPeftModelForCausalLM.from_pretrained`, `AutoModel.from_pretrained`),
and then it must be known there. So the import of a library is followed by that of ours which registers at it.

Process-wide after `follow()`, which `import hf_efficient` calls: a finder at the front of `sys.meta_path`, and what the
modules of `AFTER` register once their library is imported: PEFT's tables of methods, `PeftModel.save_pretrained` (if
a token pruner is attached), transformers' Auto classes, its Trainer's default callbacks (once a BiDST model is made).
`unfollow()` takes all of it back. Not part of it: the components of `STDOPipeline` at diffusers, which
`compat.diffusers.unregister_component` takes back.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: Module of a library -> ours that are imported after it: they register classes at it, or follow what it saves. Each
#: has `register()`, called when it is imported and of no effect a second time, and `unregister()`.
AFTER = {
    "peft": ("hf_efficient.sparsity.tuner", "hf_efficient.representation.vlm.after_peft"),
    "transformers.models.auto.configuration_auto": ("hf_efficient.video.networks.configuration_stdo",),
    "transformers.models.auto.modeling_auto": ("hf_efficient.video.networks.modeling_stdo",),
}
_PACKAGE = f"{__name__.partition('.')[0]}."
_waiting: list[str] = []  # ours that are to be imported as soon as none of ours is half-way through
_inside = threading.local()


class _Follower(MetaPathFinder):
    """Finds what the other finders find, and has its loader tell when it is done."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the next finder gives, for a module that is followed; None for all others."""
        if name not in AFTER and not name.startswith(_PACKAGE):
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Followed(spec.loader)
                return spec
        return None


class _Followed(Loader):
    """A loader that does what another does; when the outermost module is whole, those that wait are imported."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # of a copy that has nothing yet
            raise AttributeError(name)
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the other makes it."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, then ours that waits for it."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        _inside.depth = getattr(_inside, "depth", 0) + 1
        try:
            self.loader.exec_module(module)
        finally:
            _inside.depth -= 1
        _waiting.extend(AFTER.get(module.__name__, ()))
        _import_waiting()


def follow() -> None:
    """Register with the libraries that are imported already, and with the others when they are imported."""
    if not any(isinstance(finder, _Follower) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Follower())
    for module in _registered():  # again after `unfollow`
        module.register()
    _waiting.extend(ours for name, those in AFTER.items() if name in sys.modules for ours in those)
    _import_waiting()


def unfollow() -> None:
    """Take back what `follow` did: no import is followed any more, and no library knows our classes.

    Their tables are those of a process that never imported hf_efficient. Models made before go on working; `follow()`
    registers again.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Follower)]
    _waiting.clear()
    for module in _registered():
        module.unregister()


def _registered() -> list[Any]:
    """The modules of `AFTER` that are there already; one that is half-way through has yet to register."""
    loaded = (sys.modules.get(ours) for those in AFTER.values() for ours in those)
    return [module for module in loaded if hasattr(module, "unregister")]


def _import_waiting() -> None:
    while _waiting and not getattr(_inside, "depth", 0):
        ours = _waiting.pop()
        try:
            import_module(ours)
        except Exception as error:  # what the user imports must not fail because of us
            warnings.warn(f"{ours} could not be imported, its classes are not registered: {error}", stacklevel=2)
