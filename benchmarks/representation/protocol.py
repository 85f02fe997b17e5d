"""The protocol of the comparison on equal footing, written before the test set is opened; `protocol.md` says why.

Every method gets every setting that it supports (`grid`), the validation scenes choose one setting for each method and
class (`choose`), the same at all budgets, and `COMPARISONS` says beforehand what will be read off the test set.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from hf_efficient.methods import REPRESENTATION
from hf_efficient.methods.row import Method
from hf_efficient.representation.config import FEATURES, KEPT_BY

OURS = ("id_pruner", "itg")
BUDGETS = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.015)
#: What settings are chosen on: few enough tokens for settings to differ, and not so few that chance decides.
CHOICE_BUDGETS = (0.125, 0.03)
#: Validation scenes of the tiny VLM: an ordinary layout and a dense one, of seeds that are used for nothing else.
VALIDATION = ("standard:4101", "dense:4102")
VALIDATION_SCENES = 64
#: Values of every setting that is part of equal footing. A method has those that it reads.
GRID: dict[str, tuple[Any, ...]] = {
    "importance": ("cls", "received", "distinct", "norm"),
    "positions": ("original", "compact"),
    "kept_by": KEPT_BY,
    "features": FEATURES,
}
#: Name of a class -> whether the language model's attention counts tokens by what they stand for.
CLASSES = {"with sizes": True, "without sizes": False}
RESIZED = "resized image"

Accuracies = Mapping[float, float]  # by budget


@dataclass(frozen=True)
class Comparison:
    """What decides: one configuration of ours against the best other training-free method.

    Args:
        title: what it says.
        method: of ours, with its defaults.
        sizes: whether it counts sizes. If so, a rival may count them or not; if not, none does.
        real_tokens: whether rivals are only methods that keep real tokens, as ID-Pruner does.
    """

    title: str
    method: str
    sizes: bool
    real_tokens: bool

    @property
    def ours(self) -> str:
        """The row of the configuration."""
        return default_name(self.method, class_of(self.sizes))

    def rivals(self) -> list[str]:
        """The rows that it is compared with."""
        methods = [row for row in others() if keeps_real_tokens(row) or not self.real_tokens]
        classes = [name for name, sizes in CLASSES.items() if self.sizes or not sizes]
        names = [chosen_name(row.name, name) for row in methods for name in classes]
        return names if self.real_tokens else [*names, RESIZED]


COMPARISONS = (
    Comparison("ITG against any method", "itg", sizes=True, real_tokens=False),
    Comparison("ID-Pruner against methods that keep real tokens", "id_pruner", sizes=True, real_tokens=True),
    Comparison("ITG without sizes against any method without", "itg", sizes=False, real_tokens=False),
    Comparison("ID-Pruner without sizes against any method without", "id_pruner", sizes=False, real_tokens=False),
    Comparison("ID-Pruner without sizes, real tokens", "id_pruner", sizes=False, real_tokens=True),
)


def class_of(sizes: bool) -> str:
    """The name of the class."""
    return next(name for name, value in CLASSES.items() if value == sizes)


def others() -> list[Method]:
    """The methods of the table that are not ours: all of them are training-free."""
    return [row for row in REPRESENTATION.methods if row.name not in OURS]


def keeps_real_tokens(row: Method) -> bool:
    """Whether the method keeps tokens as they are."""
    return not row.where.endswith(":generate")


def supports(row: Method, setting: str) -> bool:
    """Whether a setting of `GRID` is varied for a method: all have positions; features, where its authors differ."""
    if setting == "features":
        return "features" in row.published
    return setting == "positions" or setting in row.needs or setting in row.reads


def grid(row: Method, sizes: bool) -> list[dict[str, Any]]:
    """All settings of a method in a class, those of its paper or its default first: of equals the first is chosen."""
    preferred = {"positions": "original" if sizes else "compact", **row.defaults, **row.published}
    names = [name for name in GRID if supports(row, name)]
    values = [sorted(GRID[name], key=lambda value: value != preferred.get(name)) for name in names]
    base = {"method": row.name, "proportional_attention": sizes}
    return [{**base, **dict(zip(names, chosen, strict=True))} for chosen in product(*values)]


def default(method: str, sizes: bool) -> dict[str, Any]:
    """A method as it comes, in a class."""
    return {"method": method, "proportional_attention": sizes}


def setting_name(settings: Mapping[str, Any]) -> str:
    """A name for settings, words separated by spaces: the key of their grades."""
    sizes = "sized" if settings["proportional_attention"] else "plain"
    values = [str(settings[name]) for name in GRID if name in settings]
    return " ".join([settings["method"], *(values or ["default"]), sizes])


def chosen_name(method: str, class_name: str) -> str:
    """The row of a method with what validation chose."""
    return f"{method}, {class_name}"


def default_name(method: str, class_name: str) -> str:
    """The row of a method of ours as it comes."""
    return f"{method} (default), {class_name}"


def choose(settings: Sequence[Mapping[str, Any]], accuracies: Mapping[str, Accuracies]) -> dict[str, Any]:
    """The one whose mean accuracy over the budgets it was measured at is the highest, of equals the first.

    Args:
        settings: of one method and class.
        accuracies: `setting_name` -> accuracy by budget, on validation scenes.
    """
    means = [fmean(accuracies[setting_name(one)].values()) for one in settings]
    return dict(settings[means.index(max(means))])


def best(names: Iterable[str], accuracies: Mapping[str, Accuracies], budget: float) -> str:
    """The row with the highest accuracy at a budget."""
    return max(names, key=lambda name: accuracies[name][budget])
