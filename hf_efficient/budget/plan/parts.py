"""The parts of a plan, from settings to configurations and back, and what of them cannot go together."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.reading import naming, shown
from hf_efficient.representation.config import TokenPrunerConfig

from .precision import precision_of
from .pruning import AFTER, BEFORE, PruningConfig

if TYPE_CHECKING:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig

PARTS = ("token_pruner", "sparsity", "sam", "precision", "pruning")
#: Fields of a BiDSTConfig that PEFT fills in when the model is made or saved: they are the adapter's, not the plan's.
FILLED_IN = (
    "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "counts",
    "checksum", "ensure_weight_tying",
)  # fmt: skip
RESOLVED = ("target_modules", "modules_to_save", "task_type")  # None is a question that the model answers


def part_of(name: str, value: Any) -> Any:
    """A part of a plan, given as its configuration or as the settings of one.

    Args:
        name: one of `PARTS`.
        value: a configuration, a dict of settings, or None.

    Raises:
        ValueError: it is something else, or a setting is not known or out of range.
    """
    if value is None:
        return None
    if name == "precision":
        return precision_of(value)
    classes = {"token_pruner": TokenPrunerConfig, "sam": SAMArguments, "pruning": PruningConfig}
    cls: Any = classes.get(name) or _sparsity_class()
    if not isinstance(value, (cls, dict)):
        raise ValueError(
            f"{name}={shown(value)} is out of range; expected a {cls.__name__}, its settings as a dict, or None."
        )
    if name == "sparsity":
        return sparsity_of(value if isinstance(value, dict) else sparsity_values(value))
    if isinstance(value, dict):
        with naming(name):
            return cls.from_dict(value)
    return value


def values_of(name: str, part: Any) -> dict[str, Any] | None:
    """A part of a plan as plain JSON values."""
    if part is None:
        return None
    if name == "precision":
        return copy.deepcopy(part)
    values: dict[str, Any] = sparsity_values(part) if name == "sparsity" else part.to_dict()
    return values


def sparsity_of(values: dict[str, Any]) -> BiDSTConfig:
    """A `BiDSTConfig` of its settings; what PEFT has filled into them is left to PEFT.

    Raises:
        ValueError: a setting is not known, or out of range.
    """
    cls = _sparsity_class()
    known = {field.name for field in fields(cls)}
    with naming("sparsity"):
        if unknown := sorted(set(map(str, values)) - known):
            raise ValueError(
                f"Unknown settings {shown(unknown)}; expected only those of BiDSTConfig: "
                f"{', '.join(sorted(known - set(FILLED_IN)))}. Remove them, or upgrade hf_efficient."
            )
        method = getattr(values.get("peft_type"), "value", values.get("peft_type"))
        if method not in (None, "BIDST"):
            raise ValueError(f"peft_type={shown(method)} is not a method of a plan; expected 'BIDST', or none.")
        return cls(**{name: value for name, value in values.items() if name not in FILLED_IN})


def sparsity_values(config: BiDSTConfig) -> dict[str, Any]:
    """The settings of a `BiDSTConfig` as plain JSON values, without what PEFT has filled in."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in FILLED_IN}
    return {
        name: sorted(value) if isinstance(value, (set, tuple)) else getattr(value, "value", value)
        for name, value in values.items()
    }


def differing(planned: BiDSTConfig, found: BiDSTConfig) -> list[str]:
    """The settings in which an adapter is not what was planned, as "name: found, not planned"."""
    wanted, has = sparsity_values(planned), sparsity_values(found)
    return [
        f"{name}={shown(has[name])}, not {shown(value)}"
        for name, value in wanted.items()
        if has[name] != value and name not in RESOLVED
    ]


def check_together(plan: Any) -> None:
    """Refuse parts that cannot go together, whatever the model.

    Args:
        plan: an `EfficiencyPlan`, each part of which is valid.

    Raises:
        ValueError: which they are, why, and what to do.
    """
    pruner, sparsity, sam, precision = plan.token_pruner, plan.sparsity, plan.sam, plan.precision
    if pruner is not None and pruner.adaptive:
        raise ValueError(
            "token_pruner: adaptive=True cannot be in a plan, which attaches its pruner: the processor writes "
            "placeholders before an image is looked at. Leave it out, or use prune_inputs without a plan."
        )
    if precision is not None and sparsity is not None and sparsity.target == "weight":
        raise ValueError(
            f"precision={shown(precision['quant_method'])} cannot go together with sparsity: target='weight', which "
            "trains the weights that precision quantizes. Use target='delta', or leave precision out and quantize the "
            "merged model."
        )
    if plan.pruning is not None and precision is not None:
        raise ValueError(
            f"pruning={shown(plan.pruning.method)} cannot go together with precision="
            f"{shown(precision['quant_method'])}: weights that were quantized on load cannot be pruned. Leave one of "
            "them out."
        )
    if plan.pruning is not None and plan.pruning.when == AFTER and sparsity is not None:
        raise ValueError(
            f"pruning: when={AFTER!r} cannot go together with sparsity, which trains an adapter or sparse weights: all "
            f"weights train, and are pruned then. Use when={BEFORE!r}, or leave sparsity out."
        )
    chooses = sparsity is not None and sparsity.target == "weight" and sparsity.distribution != "as_pruned"
    if plan.pruning is not None and chooses:
        raise ValueError(
            f"pruning cannot go together with sparsity: distribution={shown(sparsity.distribution)}, which chooses "
            "other zeros. Use distribution='as_pruned', which keeps those of the pruning, or leave one out."
        )
    if sam is not None and sam.perturb == "merged" and sparsity is not None:
        raise ValueError(
            "sam: perturb='merged' cannot go together with sparsity: it moves the merged weights of LoRA layers, which "
            "a sparse model does not have. Use perturb='weights'."
        )


def _sparsity_class() -> type[BiDSTConfig]:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig  # which imports PEFT

    return BiDSTConfig
