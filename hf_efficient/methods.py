"""The one table of methods: what there is, a line each, and which settings each method reads. Imports nothing heavy.

A configuration calls `check_settings(self, KIND)` when it is made: a setting that its method does not read, and that is
not at its default, is an error, since it would change nothing in silence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any, NamedTuple


class Method(NamedTuple):
    """One row.

    Args:
        name: as the configuration has it.
        line: what it does.
        paper: number on arXiv, or None.
        reads: the settings that this method reads and not every method of its kind does.
        source: authors, place and year, where there is no number.
    """

    name: str
    line: str
    paper: str | None
    reads: tuple[str, ...] = ()
    source: str = ""


class Only(NamedTuple):
    """A setting that is read only where others have certain values, whatever the method.

    Args:
        setting: its name.
        read: called with the configuration; whether the setting is read there.
        where: the same in words, after "it is read only with".
    """

    setting: str
    read: Callable[[Any], bool]
    where: str


@dataclass(frozen=True)
class Kind:
    """The methods of one configuration.

    Args:
        choice: the field that names the method.
        methods: the rows.
        only: settings whose reading depends on other settings.
    """

    choice: str
    methods: tuple[Method, ...]
    only: tuple[Only, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all methods, in the order of the table."""
        return tuple(method.name for method in self.methods)

    def row(self, name: str) -> Method:
        """The method of this name."""
        return next(method for method in self.methods if method.name == name)

    def readers(self, setting: str) -> tuple[str, ...]:
        """The methods that read a setting: those that declare it, or all if none does."""
        return tuple(method.name for method in self.methods if setting in method.reads) or self.names


_PROBES = ("num_queries", "delta", "probe_fraction", "probe_dropout", "guided", "direction_seed")

#: `SAMArguments`
OPTIMIZATION = Kind(
    "method",
    (
        Method("sam", "along the batch's own gradient, two passes", "2010.01412", ("batch_norm_pass",)),
        Method("asam", "SAM in units of each weight's size", "2102.11600", ("batch_norm_pass",)),
        Method("s2sam", "along the last step's gradient, one pass", None, source="Ji et al., NeurIPS 2024"),
        Method("zosam", "along a direction estimated from losses alone", "2603.13115", _PROBES),
        Method("looksam", "SAM every k steps, reused in between", "2203.02714",
               ("reuse_interval", "reuse_weight", "batch_norm_pass")),
        Method("msam", "along the optimizer's momentum, one pass", "2401.12033"),
    ),
    (
        Only("delta", lambda c: not c.guided, "guided=False: guided directions are asked at the distance of the step"),
        Only("reuse_weight", lambda c: c.reuse_interval > 1, "reuse_interval above 1: every step is SAM's otherwise"),
    ),
)  # fmt: skip

_GROUPS = ("min_group_share", "coverage_mix")  # of methods that choose one token after the other: quotas of groups
_ASKED = ("question_weight",)  # of methods in whose choice importance has a part

#: `TokenPrunerConfig`
REPRESENTATION = Kind(
    "method",
    (
        Method("id_pruner", "importance and coverage in one submodular objective", None,
               ("importance_weight", "kernel", *_ASKED, *_GROUPS), "this package"),
        Method("random", "the same fixed draw for every picture", None),
        Method("uniform", "an even grid", None),
        Method("top_importance", "the most important", None, (*_ASKED, *_GROUPS)),
        Method("max_min", "the farthest from all taken (DivPrune)", "2503.02175", _GROUPS),
        Method("cen_prune", "the same on centred tokens, times distinctiveness", None, _GROUPS, "Cen-Prune, 2026"),
        Method("cdpruner", "determinantal point process", "2506.10967", (*_ASKED, *_GROUPS)),
        Method("idpruner_mmr", "maximal marginal relevance (IDPruner of Tencent)", "2602.13315", (*_ASKED, *_GROUPS)),
        Method("id_selection", "importance, suppressed around what is taken", "2604.05601", (*_ASKED, *_GROUPS)),
        Method("vispruner", "half by importance, half without duplicates", None, _ASKED, "Zhang et al., ICCV 2025"),
        Method("holov", "a budget for every crop", "2510.02912", _ASKED),
        Method("scope", "saliency times gain of coverage", None, (*_ASKED, *_GROUPS), "NeurIPS 2025"),
        Method("dart", "the least like a few pivots", "2502.11494"),
        Method("spare", "column subset selection", "2606.18681", _GROUPS),
        Method("itg", "importance-weighted k-means from seeds far apart", None,
               ("lloyd_steps", "centroid_share", "seeds", "importance_power", "generator", "importance_weight",
                "kernel", *_ASKED, *_GROUPS), "this package"),
        Method("feature_pooling", "means over a coarser raster", None),
        Method("visionzip", "dominant tokens and merged contextual ones", "2412.04467", _ASKED),
        Method("prumerge", "attention, even samples and their neighbours", "2403.15388", _ASKED),
        Method("tome", "bipartite soft matching", "2210.09461"),
    ),
    (
        Only("importance_weight", lambda c: c.method != "itg" or c.seeds == "coverage", "seeds='coverage'"),
        Only("kernel", lambda c: c.method != "itg" or c.seeds == "coverage", "seeds='coverage'"),
        Only("coverage_mix",
             lambda c: c.method == "id_pruner" or c.seeds == "coverage" or c.min_group_share > 0,
             "method='id_pruner', seeds='coverage' or min_group_share above 0"),
        Only("merge_static", lambda c: c.method != "prumerge", "other methods than 'prumerge', which takes tokens in "
             "more than once"),
        Only("llm_budget", lambda c: bool(c.llm_layers), "llm_layers that are named"),
    ),
)  # fmt: skip

_EXCHANGES = ("update_interval", "drop_fraction", "stop_fraction", "init")

#: `BiDSTConfig`
SPARSITY = Kind(
    "topology",
    (
        Method("bidst", "scores learned by a bi-level hyper-gradient, dormant weights come back",
               None, (*_EXCHANGES, "candidates", "score_interval", "score_lr", "implicit_weight"),
               "Ji et al., ICML 2024"),
        Method("rigl", "the smallest die, the largest gradients come alive", "1911.11134", _EXCHANGES),
        Method("set", "the smallest die, random places come alive", "1707.04780", _EXCHANGES),
        Method("mest", "weight and gradient say who dies, chance who comes", "2110.14032", _EXCHANGES),
        Method("gmp", "dense at first, the smallest die along a cubic curve", "1710.01878",
               ("update_interval", "stop_fraction")),
        Method("static", "the first topology is the last", None, ("init",), "the baseline"),
    ),
    (
        Only("init_steps", lambda c: c.first_living in ("gradient", "snip"), "init='gradient' or 'snip'"),
        Only("sparsity", lambda c: c.distribution != "nonzero", "another distribution than 'nonzero', which keeps the "
             "zeros there are"),
        Only("init", lambda c: c.distribution != "nonzero", "another distribution than 'nonzero', which says itself "
             "which weights live"),
        Only("distribution",
             lambda c: c.distribution != "global" or c.topology != "static" or c.first_living != "random",
             "a topology or an init that compares layers: a random static one is 'uniform'"),
    ),
)  # fmt: skip

_LEVELS = ("num_chunks", "edges")

#: `FitSettings`
VIDEO = Kind(
    "method",
    (
        Method("jstdo", "one network on the data-aware sample", None, _LEVELS, "this package"),
        Method("stdo", "a network for each chunk of like difficulty", None, (*_LEVELS, "warm_start"), "CVPR 2023"),
        Method("single", "one network on all patches", None),
        Method("time", "a network for each stretch of time (NAS)", None, ("num_chunks", "warm_start"), "OSDI 2018"),
    ),
    (
        Only("expansion", lambda c: c.backbone == "wdsr", "backbone='wdsr'"),
        Only("warm_start", lambda c: c.same_networks, "networks of one size"),
    ),
)


def settings_of(kind: Kind, method: str, **settings: Any) -> dict[str, Any]:
    """Of these settings, those that a method reads: for programs whose users choose the method."""
    return {name: value for name, value in settings.items() if method in kind.readers(name)}


def check_settings(config: Any, kind: Kind) -> None:
    """Refuse settings that will not be read.

    Args:
        config: a dataclass. A value equal to its field's default counts as not set.
        kind: its row of methods. Where `kind.choice` is None no method has been chosen, and nothing is checked.

    Raises:
        ValueError: a setting is not at its default, and its method (or `kind.only`) does not read it. The message names
            value, the methods that read it, and what to do.
    """
    if ignored := unread(config, kind):
        raise ValueError(f"{'; '.join(ignored.values())}. Leave it out, or choose what reads it.")


def unread(config: Any, kind: Kind) -> dict[str, str]:
    """The settings of `config` that are not at their default and will not be read: name -> a sentence that says why."""
    chosen = getattr(config, kind.choice)
    if chosen is None:
        return {}
    ignored: dict[str, str] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value == _default(field):
            continue
        readers = kind.readers(field.name)
        if chosen not in readers:
            others = ", ".join(map(repr, readers))
            ignored[field.name] = f"{field.name}={value!r} is not read by {kind.choice}={chosen!r}, only by {others}"
            continue
        for only in kind.only:
            if only.setting == field.name and not only.read(config):
                ignored[field.name] = f"{field.name}={value!r} is read only with {only.where}"
    return ignored


def with_method(config: Any, kind: Kind, method: str, **changes: Any) -> Any:
    """A configuration like `config` for another method: settings that this one does not read go back to their default.

    Args:
        config: a dataclass that `check_settings` accepts.
        kind: its row of methods.
        method: a name of `kind`.
        changes: other fields.

    Raises:
        ValueError: the method is not known, or a changed value is not valid.
    """
    draft = copy.copy(config)
    vars(draft).update(changes, **{kind.choice: method})
    defaults = {field.name: _default(field) for field in fields(config)}
    dropped = {name: defaults[name] for name in unread(draft, kind) if name not in changes}
    return replace(config, **{kind.choice: method}, **changes, **dropped)


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default
