"""What a model costs: numbers, as a table and as a picture."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_efficient.extras import extra
from hf_efficient.files import written_whole

#: Field of a part of the report -> what it says, and its unit.
FACTS = {
    "parameters": {
        "total": ("parameters", ""),
        "nonzero": ("of them not zero", ""),
        "trainable": ("trainable values", ""),
        "memory_bytes": ("in memory", "B"),
        "file_bytes": ("in a file", "B"),
        "gradient_bytes": ("gradients", "B"),
        "optimizer_bytes": ("optimizer state", "B"),
    },
    "optimization": {
        "forward_passes": ("forward passes a step", ""),
        "backward_passes": ("backward passes a step", ""),
        "flops": ("operations a step", "FLOP"),
        "seconds": ("seconds a step", "s"),
        "activation_bytes": ("activations kept for backward", "B"),
        "peak_bytes": ("peak memory of a step, beyond what was there", "B"),
    },
    "representation": {
        "visual_tokens": ("visual tokens encoded", ""),
        "kept_tokens": ("visual tokens in the prompt", ""),
        "prompt_tokens": ("tokens in the prompt", ""),
        "prefill_flops": ("operations of a forward", "FLOP"),
        "prefill_flops_nonzero": ("of them with weights that are not zero", "FLOP"),
        "prefill_seconds": ("seconds of a forward", "s"),
        "cache_bytes": ("key-value cache after it", "B"),
    },
}


@dataclass(frozen=True)
class ParameterBudget:
    """Weights, and what training holds beside them.

    Args:
        total: parameters; those that two modules share (tied weights) count once.
        nonzero: of them not zero.
        trainable: values that an optimizer would change.
        memory_bytes: of parameters and buffers; shared storage counts once.
        file_bytes: of the tensors that `save_pretrained` writes; tied ones once.
        gradient_bytes: of trainable values.
        optimizer_bytes: state of the trainer's optimizer after a step; None without a trainer.
    """

    total: int
    nonzero: int
    trainable: int
    memory_bytes: int
    file_bytes: int
    gradient_bytes: int
    optimizer_bytes: int | None = None


@dataclass(frozen=True)
class OptimizationBudget:
    """One training step on the inputs, optimizer included.

    Args:
        forward_passes: calls of the model; the mean where steps differ by a rule.
        backward_passes: gradients of all that is trainable; so.
        flops: as `count_flops` counts.
        seconds: median.
        activation_bytes: what one forward keeps for backward, but for parameters.
        peak_bytes: largest sum of what the step allocated, beyond what was there before.
    """

    forward_passes: int | float
    backward_passes: int | float
    flops: int
    seconds: float
    activation_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class RepresentationBudget:
    """One forward on the inputs, without gradients: of a language model, the prefill.

    Args:
        visual_tokens: that the encoder made of pictures and videos; 0 without.
        kept_tokens: that stand in the prompt for them.
        prompt_tokens: length of the prompt, of all rows together; 0 without `input_ids`.
        prefill_flops: as `count_flops` counts.
        prefill_flops_nonzero: without products with weights that are zero.
        prefill_seconds: median.
        cache_bytes: keys and values that the model returns; 0 if it returns none.
    """

    visual_tokens: int
    kept_tokens: int
    prompt_tokens: int
    prefill_flops: int
    prefill_flops_nonzero: int
    prefill_seconds: float
    cache_bytes: int


@dataclass(frozen=True)
class ModuleCost:
    """What one module costs, without the modules inside it.

    Args:
        name: in the model; "" is the model itself.
        kind: its class.
        parameters: of its own; shared ones with the module that comes first.
        nonzero: of them not zero.
        flops: of a forward, as `count_flops` counts.
        flops_nonzero: without products with weights that are zero.
    """

    name: str
    kind: str
    parameters: int
    nonzero: int
    flops: int
    flops_nonzero: int


@dataclass(frozen=True)
class BudgetReport:
    """What `measure` found.

    Args:
        parameters: the first budget.
        representation: the third: a forward on the given inputs.
        optimization: the second: a training step; None without a trainer.
        modules: costs by module, in the order of the model.
    """

    parameters: ParameterBudget
    representation: RepresentationBudget
    optimization: OptimizationBudget | None = None
    modules: tuple[ModuleCost, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> BudgetReport:
        """The report that `to_dict` wrote.

        Raises:
            ValueError: a field is missing or unknown.
        """
        try:
            step = content["optimization"]
            return cls(
                ParameterBudget(**content["parameters"]),
                RepresentationBudget(**content["representation"]),
                None if step is None else OptimizationBudget(**step),
                tuple(ModuleCost(**module) for module in content["modules"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no report that BudgetReport.to_dict() wrote: {error}.") from error

    def facts(self) -> dict[tuple[str, str], float]:
        """(budget, field) -> number, of all that was measured."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name in FACTS}
        return {
            (budget, name): getattr(parts[budget], name)
            for budget, names in FACTS.items()
            for name in names
            if parts[budget] is not None and getattr(parts[budget], name) is not None
        }

    def to_markdown(self, before: BudgetReport | None = None, modules: int = 0) -> str:
        """A table of the three budgets.

        Args:
            before: another report to compare with; its numbers stand first, and the ratio last.
            modules: rows of a second table, the costliest kinds of modules (layers of one kind stand together).
        """
        earlier = {} if before is None else before.facts()
        head = ["budget", "", "value"] if before is None else ["budget", "", "before", "now", "ratio"]
        rows = []
        for (budget, name), value in self.facts().items():
            label, unit = FACTS[budget][name]
            cells = [budget, label]
            if before is not None:
                old = earlier.get((budget, name))
                cells.append("" if old is None else readable(old, unit))
            cells.append(readable(value, unit))
            if before is not None:
                cells.append(f"{value / old:.3g}" if old else "")
            rows.append(cells)
        parts = [table(head, rows)]
        if modules:
            parts.append(self._modules_table(modules))
        return "\n\n".join(parts)

    def _modules_table(self, count: int) -> str:
        """Modules whose names differ in numbers alone, together; the costliest first."""
        together: dict[tuple[str, str], list[ModuleCost]] = {}
        for module in self.modules:
            together.setdefault((pattern_of(module), module.kind), []).append(module)
        groups = sorted(together.items(), key=lambda item: -sum(m.flops for m in item[1]))[:count]
        total = sum(m.flops for m in self.modules) or 1
        rows = [
            [
                name, kind, str(len(group)), readable(sum(m.parameters for m in group), ""),
                readable(sum(m.flops for m in group), "FLOP"), f"{sum(m.flops for m in group) / total:.1%}",
            ]
            for (name, kind), group in groups
        ]  # fmt: skip
        return table(["module", "class", "how many", "parameters", "operations", "share"], rows)

    def plot(self, path: str | os.PathLike[str], before: BudgetReport | None = None) -> None:
        """Draw bars: each number as a share of what it was before; without `before`, operations by module.

        Args:
            path: of the PNG file, written whole or not at all.
            before: the report to compare with.

        Raises:
            ImportError: matplotlib is absent; the message says what to install.
        """
        with extra("plots"):
            from matplotlib.figure import Figure

        if before is None:
            bars, label = self._shares_of_modules(), "share of the operations of a forward"
        else:
            old = before.facts()
            bars = {FACTS[b][n][0]: v / old[b, n] for (b, n), v in self.facts().items() if old.get((b, n))}
            label = "now / before"
        figure = Figure(figsize=(8, 0.32 * len(bars) + 1), layout="constrained")
        axes = figure.subplots()
        drawn = axes.barh(list(bars), list(bars.values()), color="#4477aa")
        axes.bar_label(drawn, [f"{value:.3g}" for value in bars.values()], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        if before is not None:
            axes.axvline(1, color="grey", linestyle="--")
        axes.set_xlabel(label)
        with written_whole(os.fspath(path)) as draft:
            figure.savefig(draft, dpi=130, format="png")

    def _shares_of_modules(self, count: int = 12) -> dict[str, float]:
        """Name of a kind of module -> share of the operations, the largest first."""
        sums: dict[str, int] = {}
        for module in self.modules:
            sums[pattern_of(module)] = sums.get(pattern_of(module), 0) + module.flops
        total = sum(sums.values()) or 1
        return {name: sums[name] / total for name in sorted(sums, key=lambda n: -sums[n])[:count] if sums[name]}


def pattern_of(module: ModuleCost) -> str:
    """A module's name with "*" for the numbers of layers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module.name) or "(the model)"


def readable(value: float, unit: str) -> str:
    """A number with three digits and a prefix: 1.5 k, 22.7 M, 3.41 GFLOP, 12.3 ms."""
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}".rstrip()
    return f"{value:g} {unit}".rstrip()


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
