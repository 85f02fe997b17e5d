"""The model card of a plan's folder: what was done, how to load it, what it costs where that was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.files import write_text
from hf_efficient.files.card import sealed
from hf_efficient.methods import OPTIMIZATION, REPRESENTATION, SPARSITY, Method
from hf_efficient.wrapped import unwrapped

if TYPE_CHECKING:
    from hf_efficient.budget.report import BudgetReport

CARD, HEADING = "README.md", "### Efficiency plan"

TEXT = """---
{data}
---

# {title}

{base}What `hf_efficient` was asked to do, in one plan:

{done}

## Load it

```python
from hf_efficient import EfficiencyPlan

model, processor = EfficiencyPlan.load("THIS_FOLDER_OR_HUB_ID")
```

{others}
{cost}## Settings

What is not at its default; `efficiency_plan.json` has all of it.

{settings}
"""


def card_of(plan: Any, model: Any, report: BudgetReport | None = None) -> str:
    """The card in Markdown.

    Args:
        plan: an `EfficiencyPlan`.
        model: that is saved with it, or None.
        report: what it costs, or None.
    """
    from huggingface_hub import ModelCardData

    config = None if model is None else getattr(unwrapped(model), "config", None)
    base = getattr(config, "name_or_path", "") or ""
    on_hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", base)) and not Path(base).exists()
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="transformers",
        tags=_tags(plan),
    )
    text = TEXT.format(
        data=data.to_yaml().strip(),
        title=f"{base.rsplit('/', 1)[-1] or type(unwrapped(model)).__name__ if model is not None else 'A model'}, "
        "under an efficiency plan",
        base=f"Made of [{base}](https://huggingface.co/{base}). " if on_hub else "",
        done="\n".join(f"- {line}" for line in done(plan)),
        others=_others(plan, model),
        cost="" if report is None else f"## What it costs\n\n{report.to_markdown().strip()}\n\n",
        settings="\n".join(f"- {name}: {value}" for name, value in settings_of(plan).items()) or "None.",
    )
    return sealed(text)


def add_section(path: Path, plan: Any) -> None:
    """Add a section on the plan, and its tags, to a card of the Trainer's, once."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(path)
    if HEADING not in card.text:
        card.text = "\n\n".join([card.text.rstrip(), HEADING, "\n".join(f"- {line}" for line in done(plan))]) + "\n"
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *_tags(plan)]))
    write_text(path, str(card))


def _tags(plan: Any) -> list[str]:
    return list(dict.fromkeys(["hf_efficient", "efficiency-plan", *(row.name for row in methods_of(plan).values())]))


def methods_of(plan: Any) -> dict[str, Method]:
    """The rows of the table of methods that a plan's parts name."""
    rows = {}
    if plan.token_pruner is not None:
        rows["token_pruner"] = REPRESENTATION.row(plan.token_pruner.method)
    if plan.sparsity is not None:
        rows["sparsity"] = SPARSITY.row(plan.sparsity.topology)
    if plan.sam is not None:
        rows["sam"] = OPTIMIZATION.row(plan.sam.method or "sam")
    return rows


def done(plan: Any) -> list[str]:
    """What each part does, a line each."""
    lines, rows = [], methods_of(plan)
    if plan.token_pruner is not None:
        budget, row = plan.token_pruner.budget, rows["token_pruner"]
        kept = f"{budget} visual tokens" if isinstance(budget, int) else f"{budget:.4g} of the visual tokens"
        lines.append(f"Representation: `{row.name}` keeps {kept} of each image, tile or frame ({row.source}).")
    if plan.sparsity is not None:
        sparsity, row = plan.sparsity, rows["sparsity"]
        what = "the layers' own weights are" if sparsity.target == "weight" else "the adapter's entries are"
        lines.append(f"Parameters: `{row.name}`; {sparsity.sparsity:.4g} of {what} inactive ({row.source}).")
    if plan.sam is not None:
        row = rows["sam"]
        lines.append(f"Optimization: `{row.name}` with rho = {plan.sam.rho:g} ({row.source}), in training.")
    if plan.pruning is not None:
        pruning = plan.pruning
        lines.append(f"Parameters: {pruning.sparsity:.4g} of the linear layers' weights are zero ({pruning.method}).")
    if plan.precision is not None:
        lines.append(f"Precision: {plan.precision['quant_method']}, on load.")
    return lines or ["Nothing: every part of the plan is empty."]


def settings_of(plan: Any) -> dict[str, Any]:
    """part.setting -> value, of all that is not at its default."""
    found: dict[str, Any] = {}
    defaults: dict[str, dict[str, Any]] = {}
    for name, values in plan.to_dict().items():
        if values is None:
            continue
        if name == "precision":
            defaults[name] = {}
        else:
            part = getattr(plan, name)
            defaults[name] = type(plan)(**{name: type(part)()}).to_dict()[name]
        found |= {f"{name}.{key}": v for key, v in values.items() if v != defaults[name].get(key, object())}
    return {name: value for name, value in found.items() if value is not None}


def _others(plan: Any, model: Any) -> str:
    if model is None:
        return "The plan alone; `EfficiencyPlan.load(MODEL, plan=THIS_FOLDER_OR_HUB_ID)` puts it on a model.\n"
    if plan.pruning is not None and not getattr(model, "peft_config", None):
        return "The weights are stored sparsely: `hf_efficient.load_sparse` reads them, plain transformers does not.\n"
    lines = "Plain transformers reads the stock weights here, without the plan"
    if getattr(model, "peft_config", None):
        lines += (
            ', and PEFT the adapter: `PeftModel.from_pretrained(model, "THIS_FOLDER_OR_HUB_ID", subfolder="adapter")`, '
            "after `import hf_efficient`"
        )
    return f"{lines}.\n"
