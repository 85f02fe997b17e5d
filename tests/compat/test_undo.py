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


def test_saving_of_peft_and_the_components_of_diffusers_are_as_before() -> None:
    import peft
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

    from hf_efficient.compat.diffusers import register_component, unregister_component
    from hf_efficient.representation.vlm.wrapped import follow_peft, unfollow_peft

    unfollow_peft()
    stock = peft.PeftModel.save_pretrained
    follow_peft()
    assert peft.PeftModel.save_pretrained is not stock
    unfollow_peft()
    assert peft.PeftModel.save_pretrained is stock
    follow_peft()
    before = (dict(LOADABLE_CLASSES), dict(ALL_IMPORTABLE_CLASSES))
    register_component("a_library", "AClass")
    assert "AClass" in LOADABLE_CLASSES["a_library"]
    unregister_component("a_library", "AClass")
    assert before == (LOADABLE_CLASSES, ALL_IMPORTABLE_CLASSES)
