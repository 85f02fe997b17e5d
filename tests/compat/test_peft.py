"""What is used of PEFT's private names is there, with the parameters it was read with."""

import peft

from hf_efficient.compat.peft import CALLED, OVERRIDDEN, READ
from tests.compat.private_names import changes, look_up


def test_private_names_are_as_they_were_read() -> None:
    found = changes(READ, CALLED | OVERRIDDEN)
    assert not found, f"PEFT {peft.__version__}:\n" + "\n".join(found)


def test_the_tuner_overrides_no_other_private_name() -> None:
    from hf_efficient.sparsity.tuner import BiDSTModel
    from hf_efficient.sparsity.tuner.layer import BiDSTLayer

    for cls, stock in ((BiDSTModel, "BaseTuner"), (BiDSTLayer, "BaseTunerLayer")):
        base = look_up(f"peft.tuners.tuners_utils:{stock}")
        private = {n for n in vars(cls) if n.startswith("_") and not n.startswith("__") and not n.startswith("_abc")}
        ours = {n for n in private if hasattr(base, n)}
        assert ours == {w.rpartition(".")[2] for w in OVERRIDDEN if f"{stock}." in w}, cls
