"""ID-Pruner and ITG with a part turned round or taken out, to see whether it acts: methods of benchmarks alone."""

from dataclasses import replace

from hf_efficient.methods import REPRESENTATION

#: Name -> the method it is made of, and what implements it.
TURNED = {
    "id_pruner_reversed": ("id_pruner", f"{__name__}.reverse:choose"),
    "id_pruner_least": ("id_pruner", f"{__name__}.least:choose"),
    "itg_reversed": ("itg", f"{__name__}.reverse:generate"),
    "itg_even": ("itg", f"{__name__}.even:generate"),
}


def add_turned() -> None:
    """Give the table of methods these rows, if it does not have them."""
    missing = [name for name in TURNED if name not in REPRESENTATION.names]
    rows = {name: (REPRESENTATION.row(TURNED[name][0]), TURNED[name][1]) for name in missing}
    REPRESENTATION.methods += tuple(replace(row, name=name, where=where) for name, (row, where) in rows.items())
