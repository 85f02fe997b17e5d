"""What the test of equal footing says: who leads, and what counting sizes is worth to each method."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.intervals import Bootstrap, Grades, interval
from benchmarks.harness.tables import markdown
from benchmarks.representation.protocol import COMPARISONS, Accuracies, Comparison, best
from benchmarks.representation.retention_statistics import accuracy

AtBudget = Mapping[str, Sequence[Grades]]  # row -> grades of every model


def ahead(ours: Sequence[Grades], other: Sequence[Grades], bootstrap: Bootstrap) -> dict[str, Any]:
    """How far ours is ahead on the same questions, and the 95 % interval of that."""
    gap = bootstrap.samples(ours) - bootstrap.samples(other)
    return {"ahead": round(accuracy(ours) - accuracy(other), 4), "interval": interval(gap)}


def verdict(lead: Mapping[str, Any]) -> str:
    """What an interval says."""
    low, high = lead["interval"]
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


def decide(
    comparison: Comparison, here: AtBudget, validation: Mapping[str, Accuracies], budget: float, bootstrap: Bootstrap
) -> dict[str, Any]:
    """One comparison at one budget.

    Returns:
        `against_chosen`: the lead over the rival that was the best on validation scenes, which decides;
        `against_best`: over the rival that is the best on these very answers, which is in its favour.
    """
    found = {name: {budget: accuracy(here[name])} for name in comparison.rivals()}
    rivals = {
        "against_chosen": best(found, validation, budget), "against_best": best(found, found, budget)
    }  # fmt: skip
    ours = here[comparison.ours]
    leads: dict[str, Any] = {"comparison": comparison.title, "ours": comparison.ours, "budget": budget}
    for kind, rival in rivals.items():
        lead = {"rival": rival, **ahead(ours, here[rival], bootstrap)}
        leads[kind] = {**lead, "verdict": verdict(lead)}
    return leads


def worth_of_sizes(here: AtBudget, pairs: Mapping[str, tuple[str, str]], bootstrap: Bootstrap) -> dict[str, Any]:
    """What counting sizes adds to each method: `pairs` has its row with them and its row without."""
    return {method: ahead(here[sized], here[plain], bootstrap) for method, (sized, plain) in pairs.items()}


def signed(lead: Mapping[str, Any]) -> str:
    """A lead in points, with its interval."""
    low, high = lead["interval"]
    return f"{100 * lead['ahead']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def comparison_table(leads: Sequence[Mapping[str, Any]], tokens: Mapping[float, int]) -> str:
    """Every comparison of the protocol at every budget, the stricter rival beside the one that decides."""
    rows = []
    for lead in leads:
        cells: list[Any] = [lead["comparison"], tokens[lead["budget"]]]
        for kind in ("against_chosen", "against_best"):
            cells += [lead[kind]["rival"], signed(lead[kind]), lead[kind]["verdict"]]
        rows.append(cells)
    head = ["comparison", "tokens", "best rival on validation", "ahead by, points", "", "best rival on these answers",
            "ahead by, points", ""]  # fmt: skip
    return markdown(head, rows)


def short_table(
    accuracies: Mapping[str, Accuracies], validation: Mapping[str, Accuracies], tokens: Mapping[float, int]
) -> str:
    """Per comparison our configuration, the rival that validation chose, and the best rival, over the budgets."""
    rows = []
    for comparison in COMPARISONS:
        rivals, ours = comparison.rivals(), accuracies[comparison.ours]
        rows.append([f"**{comparison.ours}**", *(f"{100 * ours[budget]:.1f}" for budget in tokens)])
        for what, by in (("best on validation", validation), ("best here", accuracies)):
            names = {budget: best(rivals, by, budget) for budget in tokens}
            cells = [f"{100 * accuracies[name][budget]:.1f} {name}" for budget, name in names.items()]
            rows.append([f"{comparison.title}: {what}", *cells])
    return markdown(["accuracy, %, at tokens kept", *map(str, tokens.values())], rows)


def accuracy_table(
    accuracies: Mapping[str, Accuracies], tokens: Mapping[float, int], words: Mapping[str, str], names: Sequence[str]
) -> str:
    """One row a configuration, by the mean over the budgets."""
    ranked = sorted(names, key=lambda name: -sum(accuracies[name].values()))
    rows = [[name, words[name], *(f"{100 * accuracies[name][b]:.1f}" for b in tokens)] for name in ranked]
    return markdown(["row", "settings", *map(str, tokens.values())], rows)


def sizes_table(worth: Mapping[float, Mapping[str, Any]], tokens: Mapping[float, int]) -> str:
    """What counting sizes adds, method by method."""
    rows = [[method, *(signed(worth[b][method]) for b in tokens)] for method in next(iter(worth.values()))]
    return markdown(["points that counting sizes adds", *map(str, tokens.values())], rows)
