"""The tuner overrides no private name of PEFT but those that are listed."""

from hf_efficient.compat.names import look_up
from hf_efficient.compat.peft import OVERRIDDEN


def test_the_tuner_overrides_no_other_private_name() -> None:
    from hf_efficient.sparsity.tuner import BiDSTModel
    from hf_efficient.sparsity.tuner.layer import BiDSTLayer

    for cls, stock in ((BiDSTModel, "BaseTuner"), (BiDSTLayer, "BaseTunerLayer")):
        base = look_up(f"peft.tuners.tuners_utils:{stock}")
        private = {n for n in vars(cls) if n.startswith("_") and not n.startswith("__") and not n.startswith("_abc")}
        ours = {n for n in private if hasattr(base, n)}
        assert ours == {w.rpartition(".")[2] for w in OVERRIDDEN if f"{stock}." in w}, cls
