"""The table of methods, and the refusal of settings that a method does not read, for any dataclass."""

from dataclasses import dataclass, field

import pytest

from hf_efficient.methods import Kind, Method, Only, check_settings

TREES = Kind(
    budget="shade",
    choice="tree",
    call="Tree({})",
    runs="in gardens",
    page="trees.md",
    methods=(
        Method("oak", "grows slowly", "trees:Oak", reads=("acorns",)),
        Method("pine", "is always green", "trees:Pine", reads=("cones", "resin"),
               only=(Only("resin", lambda c: c.cut, "cut=True"),)),
        Method("yew", "outlives us", "trees:Yew"),
    ),
)  # fmt: skip


@dataclass
class Tree:
    tree: str | None = None
    height: float = 1.0
    acorns: list[int] = field(default_factory=list)
    cones: int = 3
    resin: float | None = None
    cut: bool = False

    def __post_init__(self) -> None:
        check_settings(self, TREES)


def test_what_every_method_reads_and_what_is_at_its_default_is_never_refused() -> None:
    for tree in (None, "oak", "pine", "yew"):
        Tree(tree, height=2.0, acorns=[], cones=3, resin=None)
    Tree("oak", acorns=[1])
    Tree("pine", cones=5, resin=0.5, cut=True)
    Tree(None, acorns=[1], cones=5)  # no method yet: nothing can be said


def test_a_setting_of_another_method_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"cones=5 is not read by tree='oak', only by 'pine'\. Leave it out"):
        Tree("oak", cones=5)
    with pytest.raises(ValueError, match=r"acorns=\[1\] is not read .*; cones=5 is not read "):
        Tree("yew", acorns=[1], cones=5)


def test_a_setting_that_another_setting_switches_off_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resin=0\.5 is read only with cut=True"):
        Tree("pine", resin=0.5)
    with pytest.raises(ValueError, match="not read by tree='oak'"):
        Tree("oak", resin=0.5)
