"""BiDST as a tuner of PEFT.

hf_efficient.compat.registration imports this package as soon as PEFT is imported: a saved adapter only names its
method.
"""

from hf_efficient.compat.peft import add_peft_method, remove_peft_method
from hf_efficient.compat.transformers import remove_default_callback

from .config import BiDSTConfig
from .layer import BiDSTLayer, Linear
from .model import BiDSTModel

__all__ = ["BiDSTConfig", "BiDSTLayer", "BiDSTModel", "Linear"]


def register() -> None:
    """Let PEFT know BiDST's config and model."""
    add_peft_method("bidst", BiDSTConfig, BiDSTModel)


def unregister() -> None:
    """Undo `register`, and what making a model added to the Trainers."""
    remove_peft_method("bidst")
    remove_default_callback("DefaultSparsityCallback")


register()
