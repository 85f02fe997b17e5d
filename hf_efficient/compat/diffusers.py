"""diffusers: the private and undocumented names that this package calls, sets or overrides, as read in 0.42.1."""

from __future__ import annotations

import sys

#: "module:name" -> parameters, of what is overridden.
OVERRIDDEN = {
    "diffusers:DiffusionPipeline.from_pretrained": ("pretrained_model_name_or_path", "kwargs"),
    "diffusers:DiffusionPipeline.save_pretrained": (
        "self", "save_directory", "safe_serialization", "variant", "max_shard_size", "push_to_hub", "use_flashpack",
        "kwargs",
    ),
}  # fmt: skip
#: "module:name" -> parameters, of what is called.
CALLED = {
    "diffusers:DiffusionPipeline.register_modules": ("self", "kwargs"),
    "diffusers:DiffusionPipeline.progress_bar": ("self", "iterable", "total"),
}
#: "module:name" of what is read or set.
READ = (
    "diffusers.pipelines.pipeline_loading_utils:LOADABLE_CLASSES",
    "diffusers.pipelines.pipeline_loading_utils:ALL_IMPORTABLE_CLASSES",
    "diffusers.utils:BaseOutput",
)
_METHODS = ("save_pretrained", "from_pretrained")


def register_component(library: str, name: str) -> None:
    """Let pipelines save and load a component of a library that diffusers does not know, by the library's public name.

    `model_index.json` then names the component by `library`, which stays when modules move. There is no registration:
    `pipeline_loading_utils.LOADABLE_CLASSES` and `ALL_IMPORTABLE_CLASSES` are changed for the whole process, until
    `unregister_component`.
    """
    from diffusers.pipelines import pipeline_loading_utils as tables

    tables.LOADABLE_CLASSES.setdefault(library, {})[name] = list(_METHODS)
    tables.ALL_IMPORTABLE_CLASSES.setdefault(name, list(_METHODS))


def unregister_component(library: str, name: str) -> None:
    """Undo `register_component`; nothing happens where diffusers, or the component in it, is absent."""
    tables = sys.modules.get("diffusers.pipelines.pipeline_loading_utils")
    if tables is not None:
        tables.LOADABLE_CLASSES.pop(library, None)
        tables.ALL_IMPORTABLE_CLASSES.pop(name, None)
