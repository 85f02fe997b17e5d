"""hf_efficient: do the same with less, on stock Hugging Face models.

Public names are resolved when first used (PEP 562): `import hf_efficient` imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_efficient.compat.registration import follow

__version__ = "0.1.0"

# Public name -> module that defines it. The one place where a public name is added (and below, for type checkers).
_MODULE_OF = {
    "TokenPrunerConfig": "hf_efficient.representation.config",
    "ReducedTokens": "hf_efficient.representation.reduce",
    "reduce_tokens": "hf_efficient.representation.reduce",
    "attach_token_pruner": "hf_efficient.representation.vlm.attach",
    "detach_token_pruner": "hf_efficient.representation.vlm.attach",
    "load_token_pruned": "hf_efficient.representation.vlm.loading",
    "token_pruner": "hf_efficient.representation.vlm.attach",
    "STDOConfig": "hf_efficient.video.networks.configuration_stdo",
    "STDOModel": "hf_efficient.video.networks.modeling_stdo",
    "STDOPipeline": "hf_efficient.video.play.pipeline_stdo",
    "FitSettings": "hf_efficient.video.settings",
    "fit_video": "hf_efficient.video.encode.fit",
    "prune_inputs": "hf_efficient.representation.vlm.inputs",
    "remember_images": "hf_efficient.representation.vlm.memory",
    "SAMArguments": "hf_efficient.optimization.arguments",
    "SAMTrainer": "hf_efficient.optimization.training.trainer",
    "S2SAMTrainer": "hf_efficient.optimization.training.trainer",
    "ZOSAMTrainer": "hf_efficient.optimization.training.trainer",
    "SAMTrainerMixin": "hf_efficient.optimization.training.trainer",
    "SAM": "hf_efficient.optimization.loop.optimizers",
    "ASAM": "hf_efficient.optimization.loop.optimizers",
    "S2SAM": "hf_efficient.optimization.loop.optimizers",
    "ZOSAM": "hf_efficient.optimization.loop.optimizers",
    "LookSAM": "hf_efficient.optimization.loop.optimizers",
    "MSAM": "hf_efficient.optimization.loop.optimizers",
    "recalibrate_batch_norm": "hf_efficient.optimization.engine.batch_norm",
    "BiDSTConfig": "hf_efficient.sparsity.tuner.config",
    "BiDSTModel": "hf_efficient.sparsity.tuner.model",
    "BiDSTTrainer": "hf_efficient.sparsity.tuner.trainer",
    "SparsityCallback": "hf_efficient.sparsity.tuner.callback",
    "train_sparsely": "hf_efficient.sparsity.tuner.loop",
    "compress": "hf_efficient.sparsity.csr.compress",
    "decompress": "hf_efficient.sparsity.csr.compress",
    "convert_bitmask": "hf_efficient.sparsity.storage.bitmask",
    "keep_sparsity": "hf_efficient.sparsity.pruned.keep",
    "prune_sparsegpt": "hf_efficient.sparsity.pruned.sparsegpt",
    "prune_wanda": "hf_efficient.sparsity.pruned.wanda",
    "load_sparse": "hf_efficient.sparsity.storage.checkpoint",
    "save_sparse": "hf_efficient.sparsity.storage.checkpoint",
    "sharpness": "hf_efficient.optimization.sharpness",
    "EfficiencyPlan": "hf_efficient.budget.plan.efficiency_plan",
    "EfficientTrainer": "hf_efficient.budget.trainer",
    "FoundPlan": "hf_efficient.budget.planner.found",
    "LimitError": "hf_efficient.budget.planner.limits",
    "PruningConfig": "hf_efficient.budget.plan.pruning",
    "find_plan": "hf_efficient.budget.planner.search",
    "train_plan": "hf_efficient.budget.training",
    "BudgetReport": "hf_efficient.budget.report",
    "measure": "hf_efficient.budget.measure",
}

if TYPE_CHECKING:
    from hf_efficient.budget.measure import measure
    from hf_efficient.budget.plan.efficiency_plan import EfficiencyPlan
    from hf_efficient.budget.plan.pruning import PruningConfig
    from hf_efficient.budget.planner.found import FoundPlan
    from hf_efficient.budget.planner.limits import LimitError
    from hf_efficient.budget.planner.search import find_plan
    from hf_efficient.budget.report import BudgetReport
    from hf_efficient.budget.trainer import EfficientTrainer
    from hf_efficient.budget.training import train_plan
    from hf_efficient.optimization.arguments import SAMArguments
    from hf_efficient.optimization.engine.batch_norm import recalibrate_batch_norm
    from hf_efficient.optimization.loop.optimizers import ASAM, MSAM, S2SAM, SAM, ZOSAM, LookSAM
    from hf_efficient.optimization.sharpness import sharpness
    from hf_efficient.optimization.training.trainer import (
        S2SAMTrainer,
        SAMTrainer,
        SAMTrainerMixin,
        ZOSAMTrainer,
    )
    from hf_efficient.representation.config import TokenPrunerConfig
    from hf_efficient.representation.reduce import ReducedTokens, reduce_tokens
    from hf_efficient.representation.vlm.attach import attach_token_pruner, detach_token_pruner, token_pruner
    from hf_efficient.representation.vlm.inputs import prune_inputs
    from hf_efficient.representation.vlm.loading import load_token_pruned
    from hf_efficient.representation.vlm.memory import remember_images
    from hf_efficient.sparsity.csr.compress import compress, decompress
    from hf_efficient.sparsity.pruned.keep import keep_sparsity
    from hf_efficient.sparsity.pruned.sparsegpt import prune_sparsegpt
    from hf_efficient.sparsity.pruned.wanda import prune_wanda
    from hf_efficient.sparsity.storage.bitmask import convert_bitmask
    from hf_efficient.sparsity.storage.checkpoint import load_sparse, save_sparse
    from hf_efficient.sparsity.tuner.callback import SparsityCallback
    from hf_efficient.sparsity.tuner.config import BiDSTConfig
    from hf_efficient.sparsity.tuner.loop import train_sparsely
    from hf_efficient.sparsity.tuner.model import BiDSTModel
    from hf_efficient.sparsity.tuner.trainer import BiDSTTrainer
    from hf_efficient.video.encode.fit import fit_video
    from hf_efficient.video.networks.configuration_stdo import STDOConfig
    from hf_efficient.video.networks.modeling_stdo import STDOModel
    from hf_efficient.video.play.pipeline_stdo import STDOPipeline
    from hf_efficient.video.settings import FitSettings

__all__ = [
    "ASAM",
    "MSAM",
    "S2SAM",
    "SAM",
    "ZOSAM",
    "BiDSTConfig",
    "BiDSTModel",
    "BiDSTTrainer",
    "BudgetReport",
    "EfficiencyPlan",
    "EfficientTrainer",
    "FitSettings",
    "FoundPlan",
    "LimitError",
    "LookSAM",
    "PruningConfig",
    "ReducedTokens",
    "S2SAMTrainer",
    "SAMArguments",
    "SAMTrainer",
    "SAMTrainerMixin",
    "STDOConfig",
    "STDOModel",
    "STDOPipeline",
    "SparsityCallback",
    "TokenPrunerConfig",
    "ZOSAMTrainer",
    "__version__",
    "attach_token_pruner",
    "compress",
    "convert_bitmask",
    "decompress",
    "detach_token_pruner",
    "find_plan",
    "fit_video",
    "keep_sparsity",
    "load_sparse",
    "load_token_pruned",
    "measure",
    "prune_inputs",
    "prune_sparsegpt",
    "prune_wanda",
    "recalibrate_batch_norm",
    "reduce_tokens",
    "remember_images",
    "save_sparse",
    "sharpness",
    "token_pruner",
    "train_plan",
    "train_sparsely",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hf_efficient.extras import extra

    module = _MODULE_OF[name]
    with extra(module.split(".")[1]):  # its packages are named as the extras that they need, if any
        value = getattr(import_module(module), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


follow()
