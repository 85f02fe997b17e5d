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
    "prune_inputs": "hf_efficient.representation.inputs",
    "remember_pictures": "hf_efficient.representation.memory",
}

if TYPE_CHECKING:
    from hf_efficient.representation.attach import (
        attach_token_pruner,
        detach_token_pruner,
        load_token_pruned,
        token_pruner,
    )
    from hf_efficient.representation.config import TokenPrunerConfig
    from hf_efficient.representation.inputs import prune_inputs
    from hf_efficient.representation.memory import remember_pictures
    from hf_efficient.representation.reduce import ReducedTokens, reduce_tokens

__all__ = [
    "ReducedTokens",
    "TokenPrunerConfig",
    "__version__",
    "attach_token_pruner",
    "detach_token_pruner",
    "load_token_pruned",
    "prune_inputs",
    "reduce_tokens",
    "remember_pictures",
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
