"""What is changed in PEFT for the whole process can be taken back."""

import subprocess
import sys

UNDONE = """
import peft
from peft import mapping
from peft.utils import PeftType, register_peft_method

def tables():
    kinds = ("CONFIG", "TUNER", "PREFIX")
    return ([dict(getattr(mapping, f"PEFT_TYPE_TO_{kind}_MAPPING")) for kind in kinds], list(PeftType),
            dict(PeftType._value2member_map_), sorted(vars(PeftType)))

before = tables()
import hf_efficient
import hf_efficient.sparsity.tuner
from hf_efficient.compat.peft import remove_peft_method
assert PeftType("BIDST") in mapping.PEFT_TYPE_TO_CONFIG_MAPPING
assert tables() != before
remove_peft_method("bidst")
assert tables() == before
remove_peft_method("bidst")
assert tables() == before
"""


def test_peft_forgets_the_method() -> None:
    done = subprocess.run([sys.executable, "-c", UNDONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
