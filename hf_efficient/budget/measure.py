"""What a model costs in its three budgets, counted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_efficient.budget.forward import representation_budget
from hf_efficient.budget.memory import device_of
from hf_efficient.budget.parameters import Known, parameter_budget, weights_by_module
from hf_efficient.budget.report import BudgetReport, ModuleCost
from hf_efficient.budget.step import as_it_was, optimization_budget, random_numbers_kept
from hf_efficient.checks import check_whole
from hf_efficient.compat.transformers import cache_name
from hf_efficient.modes import evaluating


def measure(model: nn.Module, inputs: Any, trainer: Any = None, repeats: int = 3) -> BudgetReport:
    """Measure what a model costs on given inputs.

    Nothing changes: weights, gradients, the trainer's optimizer and the program's random numbers are as before. What is
    counted (parameters, operations, bytes of tensors) does not depend on the machine; seconds do.

    Args:
        model: any module, with whatever of this package is attached to it.
        inputs: a dict of arguments, as a processor or a data collator makes it; or a tensor, the only argument.
        trainer: a Trainer of the model, of any method: one step of it is measured too, on a micro-batch of `inputs`,
            which then need labels. A step that a `BiDSTConfig` makes costs what it costs between exchanges.
        repeats: forwards and steps that are timed, >= 1; the median counts. One more of each goes before.

    Returns:
        The report; see `BudgetReport.to_markdown` and `plot`.

    Raises:
        ValueError: `repeats` below 1; a model without weights, or with all of them on the device "meta"; inputs with a
            cache, which a forward would fill; or the trainer is of another model.
        TypeError: `inputs` are neither a dict nor a tensor.
    """
    check_whole("repeats", repeats, 1)
    device_of(model)
    check_inputs(inputs, trainer)
    if trainer is not None and trainer.model is not model:
        raise ValueError("The trainer trains another model; pass measure(trainer.model, inputs, trainer).")
    if isinstance(inputs, Tensor):
        arguments, call = {}, lambda: model(inputs)
    else:
        arguments, call = dict(inputs), lambda: model(**inputs)
    known: Known = {}
    with evaluating(model), random_numbers_kept(model), torch.no_grad():
        representation, flops, useful = representation_budget(model, arguments, call, repeats, known)
    step, weights = None, weights_by_module(model, known)  # before steps, which fill what was zero
    if trainer is not None:
        with as_it_was(trainer), torch.enable_grad():
            step = optimization_budget(trainer, arguments, repeats)
            parameters = parameter_budget(model, weights, trainer.optimizer)
    else:
        parameters = parameter_budget(model, weights)
    modules = tuple(
        ModuleCost(name, type(module).__name__, *weights[name], flops.own.get(name, 0), useful.get(name, 0))
        for name, module in model.named_modules()
        if weights[name][0] or flops.own.get(name)
    )
    return BudgetReport(parameters, representation, step, modules)


def check_inputs(inputs: Any, trainer: Any) -> None:
    """Refuse what is no input of a model, or of a step, or would not be the same after it."""
    if not isinstance(inputs, (Tensor, Mapping)):
        raise TypeError(f"inputs is a {type(inputs).__name__}; expected a dict as a processor returns it, or a tensor.")
    if isinstance(inputs, Tensor):
        if trainer is not None:
            raise ValueError("inputs is a tensor; expected a dict with labels, which a step of the trainer takes.")
    elif inputs.get(cache_name()) is not None:
        raise ValueError(
            f"inputs has {cache_name()}, a cache that every forward fills further; leave it out, and pass the whole "
            "prompt."
        )
