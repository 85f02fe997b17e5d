"""Plan and model in one folder, which every loader reads as far as it can.

The weights, config and processor lie at the top, as plain transformers reads them; the adapter lies in `adapter/`. An
adapter beside the weights would be found by transformers itself, which then loads it, or fails where it does not know
its method. So plain transformers gets stock weights, PEFT the adapter with `subfolder="adapter"`, and
`EfficiencyPlan.load` everything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from hf_efficient.extras import extra
from hf_efficient.files import folder_updated, locked, make_folder, write_text
from hf_efficient.files.card import is_free
from hf_efficient.files.finding import ADAPTER_CONFIG, ADAPTER_FOLDER
from hf_efficient.reading import read_json
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.sparsity.storage.checkpoint import save_sparse
from hf_efficient.wrapped import pruner_below, unwrapped

from . import file as plan_file
from .applying import check_model
from .card import CARD, card_of
from .pruning import is_pruned

ADAPTER_AT_TOP = (
    "{!r} has an adapter at its top, as what a Trainer saves, and transformers would load it with the weights. Name "
    "another folder."
)


def check_free(folder: str | os.PathLike[str], weights: bool = False) -> None:
    """Refuse a folder that nothing could be saved to, before work is done for it.

    Args:
        folder: may be absent.
        weights: whether other weights than those that may lie there will be saved.

    Raises:
        FileExistsError: weights are there that are no plan's, an adapter, or a plan's file that cannot be read.
    """
    target = Path(folder)
    ours = set(plan_file.files_of(target)) if target.is_dir() else set()
    if weights and (target / ADAPTER_CONFIG).exists():
        raise FileExistsError(ADAPTER_AT_TOP.format(str(folder)))
    foreign = sorted(path.name for path in target.glob("*.safetensors") if path.name not in ours)
    if weights and foreign:
        raise FileExistsError(f"{str(target / foreign[0])!r} is no plan's, and is not replaced: name another folder.")


def save(
    plan: Any, folder: str | os.PathLike[str], model: Any, processor: Any, report: Any = None, repo_id: str = ""
) -> None:
    """Write a plan, and the model and processor that were made by it.

    Args:
        plan: an `EfficiencyPlan`.
        folder: made if absent; what others have put there stays.
        model: as `EfficiencyPlan.apply` returned it, trained or not; None: the plan alone.
        processor: its processor, or None.
        report: a `BudgetReport` for the card, or None.
        repo_id: where on the Hub the folder goes, if it goes there: the adapter names it as its base model.

    Raises:
        ValueError: the model is not what was planned.
        FileExistsError: a file of the user's is in the way; nothing was touched.
        OSError: no space is left, or no permission; what was there is kept.
    """
    if model is None and processor is None:
        _save_alone(plan, Path(folder), report)
        return
    _check(plan, model, processor)
    if (Path(folder) / ADAPTER_CONFIG).exists():
        raise FileExistsError(ADAPTER_AT_TOP.format(str(folder)))
    adapted = bool(getattr(model, "peft_config", None))
    inside = unwrapped(model)
    with folder_updated(folder, _ours) as draft:
        if plan.pruning is not None and not adapted:
            save_sparse(inside, draft)
        else:
            with without_adapters(inside) if adapted else nullcontext():
                inside.save_pretrained(draft)
        if processor is not None:
            processor.save_pretrained(draft)
        if adapted:
            model.save_pretrained(draft / ADAPTER_FOLDER)
            (draft / ADAPTER_FOLDER / CARD).unlink(missing_ok=True)  # a form that PEFT has left empty
            _name_base(draft / ADAPTER_FOLDER / ADAPTER_CONFIG, repo_id)
        if plan.token_pruner is not None:
            plan.token_pruner.save_pretrained(draft)
        if is_free(Path(folder) / CARD):
            write_text(draft / CARD, card_of(plan, model, report))
        else:
            (draft / CARD).unlink(missing_ok=True)  # the model's own, in place of somebody's
        files = [path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()]
        plan_file.write(draft, plan.to_dict(), files)


def _ours(folder: Path) -> list[str]:
    """The files that an earlier plan has written, but for a card that somebody has edited since."""
    return [name for name in plan_file.files_of(folder) if name != CARD or is_free(folder / CARD)]


def _save_alone(plan: Any, folder: Path, report: Any) -> None:
    """The plan alone, into a folder that may hold a model; the file of the plan is written last."""
    make_folder(folder)
    with locked(folder / plan_file.NAME):
        files = {name for name in plan_file.files_of(folder) if name != plan_file.NAME}
        if plan.token_pruner is not None:
            plan.token_pruner.save_pretrained(folder)
            files |= {path.name for path in folder.glob("generator*.safetensors")}
        if is_free(folder / CARD):
            write_text(folder / CARD, card_of(plan, None, report))
            files.add(CARD)
        plan_file.write(folder, plan.to_dict(), sorted(files))


def _check(plan: Any, model: Any, processor: Any) -> None:
    if model is None:
        raise ValueError(
            "A processor is saved with its model: save_pretrained(folder, model, processor), or the plan alone."
        )
    has_adapter = check_model(plan, model)
    has_adapters = bool(getattr(model, "peft_config", None))
    if plan.sparsity is not None and not has_adapter:
        raise ValueError(
            "The plan has sparsity and the model no sparse adapter. Call plan.apply(model, processor) first; of a "
            "model that is merged already save the plan without it: dataclasses.replace(plan, sparsity=None)."
        )
    if plan.pruning is not None and not has_adapters and not is_pruned(unwrapped(model), plan.pruning):
        raise ValueError(
            f"The plan prunes weights, {plan.pruning}, and the model has fewer zeros. Call "
            "plan.apply(model, processor, batches) first."
        )
    if plan.token_pruner is not None and (pruner_below(model) is None or processor is None):
        lacking = "no processor is given" if processor is None else "the model has no token pruner"
        raise ValueError(
            f"The plan prunes visual tokens, and {lacking}. Call plan.apply(model, processor) first, and give both: "
            "save_pretrained(folder, model, processor)."
        )
    adapters = list(getattr(model, "peft_config", None) or {})
    if adapters and unwrapped(model) is model:
        raise ValueError(
            "The adapter was added by transformers (add_adapter), which saves it without the model. Make the model by "
            "plan.apply(model, processor), or by PEFT's get_peft_model."
        )
    if adapters not in ([], ["default"]):
        raise ValueError(
            f"The model has the adapters {adapters}; a plan's folder holds one, called 'default'. Delete the others, "
            "or save them by PEFT: model.save_pretrained(folder)."
        )


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """In the block a model has its own layers in the place of those that PEFT has put around them.

    So that it is saved as it was: names, tied weights, codes of quantized weights.

    Raises:
        ValueError: an adapter is merged into the weights, which then are not the model's own.
    """
    with extra("sparsity"):
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

    wrappers: Any = (BaseTunerLayer, ModulesToSaveWrapper)
    wrapped = {name: module for name, module in model.named_modules() if isinstance(module, wrappers)}
    if any(getattr(module, "merged", False) for module in wrapped.values()):
        raise ValueError(
            "The adapter is merged into the model's weights. Call model.unmerge_adapter() first, or "
            "model.merge_and_unload() and save it with a plan that has no sparsity."
        )
    outer = {n: m for n, m in wrapped.items() if not any(n.startswith(f"{other}.") for other in wrapped)}
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], m) for name, m in outer.items()]
    try:
        for parent, name, module in places:
            setattr(parent, name, _innermost(module, wrappers))
        yield
    finally:
        for parent, name, module in places:
            setattr(parent, name, module)


def _innermost(module: Any, wrappers: Any) -> nn.Module:
    while isinstance(module, wrappers):
        module = module.base_layer if hasattr(module, "base_layer") else module.original_module
    inside: nn.Module = module
    return inside


def _name_base(path: Path, repo_id: str) -> None:
    """Let the adapter in a repository name that repository as its base model."""
    if repo_id:
        write_text(path, json.dumps({**read_json(path), "base_model_name_or_path": repo_id}, indent=2, sort_keys=True))


def check_pruner(values: Any, folder_or_id: str | os.PathLike[str], **hub: Any) -> Any:
    """The `token_pruner` of a plan's file: what it says, with the generator that lies beside it.

    Raises:
        ValueError: the pruner's own file says something else.
    """
    if not isinstance(values, dict):
        return values  # which is None, or refused
    try:
        beside = TokenPrunerConfig.from_pretrained(folder_or_id, **hub)
    except OSError:
        return values  # the plan's file alone, which says everything but a generator's weights
    if beside.to_dict() != TokenPrunerConfig.from_dict({**values, "generator": None}).to_dict() | {
        "generator": values.get("generator")
    }:
        raise ValueError(
            f"token_pruner is not what token_pruner_config.json says: {beside}. One of the two was changed: save the "
            "plan again, or delete the other file."
        )
    return beside
