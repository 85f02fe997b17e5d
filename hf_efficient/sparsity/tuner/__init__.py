"""BiDST as a tuner of PEFT.

hf_efficient.registration imports this package as soon as PEFT is imported: a saved adapter names its method only.
"""

from hf_efficient.extras import extra

with extra("sparsity"):
    from peft.utils import register_peft_method

from .config import BiDSTConfig
from .layer import BiDSTLayer, Linear
from .model import BiDSTModel

__all__ = ["BiDSTConfig", "BiDSTLayer", "BiDSTModel", "Linear"]

register_peft_method(name="bidst", config_cls=BiDSTConfig, model_cls=BiDSTModel, prefix="bidst_")
