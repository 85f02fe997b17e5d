"""hf_efficient: do the same with less, on stock Hugging Face models.

Public names are resolved when first used (PEP 562): `import hf_efficient` imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. The one place where a public name is added (and below, for type checkers).
_MODULE_OF = {
    "TokenPrunerConfig": "hf_efficient.representation.config",
    "ReducedTokens": "hf_efficient.representation.reduce",
    "reduce_tokens": "hf_efficient.representation.reduce",
    "attach_token_pruner": "hf_efficient.representation.attach",
    "detach_token_pruner": "hf_efficient.representation.attach",
    "load_token_pruned": "hf_efficient.representation.attach",
    "token_pruner": "hf_efficient.representation.attach",
    "STDOConfig": "hf_efficient.video.configuration_stdo",
    "STDOModel": "hf_efficient.video.modeling_stdo",
    "STDOPipeline": "hf_efficient.video.pipeline_stdo",
    "fit_video": "hf_efficient.video.fit",
}

if TYPE_CHECKING:
    from hf_efficient.representation.attach import (
        attach_token_pruner,
        detach_token_pruner,
        load_token_pruned,
        token_pruner,
    )
    from hf_efficient.representation.config import TokenPrunerConfig
    from hf_efficient.representation.reduce import ReducedTokens, reduce_tokens
    from hf_efficient.video.configuration_stdo import STDOConfig
    from hf_efficient.video.fit import fit_video
    from hf_efficient.video.modeling_stdo import STDOModel
    from hf_efficient.video.pipeline_stdo import STDOPipeline

__all__ = [
    "ReducedTokens",
    "STDOConfig",
    "STDOModel",
    "STDOPipeline",
    "TokenPrunerConfig",
    "__version__",
    "attach_token_pruner",
    "detach_token_pruner",
    "fit_video",
    "load_token_pruned",
    "reduce_tokens",
    "token_pruner",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
