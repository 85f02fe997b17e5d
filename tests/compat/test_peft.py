"""What is used of PEFT's private names is there, with the parameters it was read with."""

import inspect
from functools import reduce
from importlib import import_module
from typing import Any

import peft

from hf_efficient.compat.peft import CALLED, OVERRIDDEN, READ


def look_up(where: str) -> Any:
    module, _, name = where.partition(":")
    return reduce(getattr, name.split("."), import_module(module))


def test_private_names_are_as_they_were_read() -> None:
    changed = []
    for where in (*READ, *CALLED, *OVERRIDDEN):
        try:
            found = look_up(where)
        except (ImportError, AttributeError):
            changed.append(f"{where} is gone")
            continue
        expected = (CALLED | OVERRIDDEN).get(where)
        if expected is not None and tuple(inspect.signature(found).parameters) != expected:
            changed.append(f"{where} has parameters {tuple(inspect.signature(found).parameters)}, not {expected}")
    assert not changed, f"PEFT {peft.__version__}:\n" + "\n".join(changed)


def test_the_tuner_overrides_no_other_private_name() -> None:
    from hf_efficient.sparsity.tuner import BiDSTModel
    from hf_efficient.sparsity.tuner.layer import BiDSTLayer

    for cls, stock in ((BiDSTModel, "BaseTuner"), (BiDSTLayer, "BaseTunerLayer")):
        base = look_up(f"peft.tuners.tuners_utils:{stock}")
        private = {n for n in vars(cls) if n.startswith("_") and not n.startswith("__") and not n.startswith("_abc")}
        ours = {n for n in private if hasattr(base, n)}
        assert ours == {w.rpartition(".")[2] for w in OVERRIDDEN if f"{stock}." in w}, cls
