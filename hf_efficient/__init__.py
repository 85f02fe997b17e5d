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
    "BiDSTConfig": "hf_efficient.sparsity.config",
    "BiDSTModel": "hf_efficient.sparsity.model",
    "BiDSTTrainer": "hf_efficient.sparsity.trainer",
    "SparsityCallback": "hf_efficient.sparsity.callback",
    "train_sparsely": "hf_efficient.sparsity.callback",
    "compress": "hf_efficient.sparsity.compact",
    "decompress": "hf_efficient.sparsity.compact",
    "load_sparse": "hf_efficient.sparsity.checkpoint",
    "save_sparse": "hf_efficient.sparsity.checkpoint",
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
    from hf_efficient.sparsity.callback import SparsityCallback, train_sparsely
    from hf_efficient.sparsity.checkpoint import load_sparse, save_sparse
    from hf_efficient.sparsity.compact import compress, decompress
    from hf_efficient.sparsity.config import BiDSTConfig
    from hf_efficient.sparsity.model import BiDSTModel
    from hf_efficient.sparsity.trainer import BiDSTTrainer

__all__ = [
    "BiDSTConfig",
    "BiDSTModel",
    "BiDSTTrainer",
    "ReducedTokens",
    "SparsityCallback",
    "TokenPrunerConfig",
    "__version__",
    "attach_token_pruner",
    "compress",
    "decompress",
    "detach_token_pruner",
    "load_sparse",
    "load_token_pruned",
    "reduce_tokens",
    "save_sparse",
    "token_pruner",
    "train_sparsely",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
