"""What is changed in libraries for the whole process can be taken back."""

import json
import subprocess
import sys

ALL_UNDONE = """
import json, sys
if json.loads(sys.argv[1]): import hf_efficient
import peft, transformers
from peft import mapping
from transformers import AutoModel, AutoModelForImageToImage, trainer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

def state():
    kinds = ("CONFIG", "TUNER", "MIXED_MODEL", "PREFIX")
    named = {k: sorted(map(str, getattr(mapping, f"PEFT_TYPE_TO_{k}_MAPPING"))) for k in kinds}
    named["types"] = sorted(map(str, peft.PeftType))
    named["save"] = peft.PeftModel.save_pretrained.__module__
    for cls in (AutoModel, AutoModelForImageToImage):
        named[cls.__name__] = sorted(config.__name__ for config in cls._model_mapping)
        named[cls.__name__ + " added"] = sorted(map(str, cls._model_mapping._extra_content))
    named["configs"] = sorted(CONFIG_MAPPING)
    named["callbacks"] = [callback.__name__ for callback in trainer.DEFAULT_CALLBACKS]
    return named

if json.loads(sys.argv[1]):
    from hf_efficient.compat.registration import follow, unfollow
    from hf_efficient.wrapped import follow_peft
    from hf_efficient import BiDSTConfig
    model = transformers.AutoModel.from_config(transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8))
    peft.get_peft_model(model, BiDSTConfig(target="delta", sparsity=0.5, init="random"))
    import hf_efficient.representation.vlm.pruned_model
    follow_peft()
    registered = state()
    assert "DefaultSparsityCallback" in registered["callbacks"] and "stdo" in registered["configs"]
    others = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("hf_efficient")]
    assert len(others) == len(sys.meta_path) - 1
    unfollow()
    assert sys.meta_path == others
    gone = state()
    unfollow()
    assert state() == gone and sys.meta_path == others
    follow()
    registered["callbacks"].remove("DefaultSparsityCallback")  # added again by the next model
    assert state() == registered
    unfollow()
print(json.dumps(state()))
"""
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


def test_libraries_are_as_in_a_process_that_never_imported_the_package() -> None:
    states = []
    for imported in ("false", "true"):
        done = subprocess.run([sys.executable, "-c", ALL_UNDONE, imported], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        states.append(json.loads(done.stdout.splitlines()[-1]))
    assert states[0] == states[1]


def test_peft_forgets_the_method() -> None:
    done = subprocess.run([sys.executable, "-c", UNDONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_saving_of_peft_and_the_components_of_diffusers_are_as_before() -> None:
    import peft
    from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

    from hf_efficient.compat.diffusers import register_component, unregister_component
    from hf_efficient.wrapped import follow_peft, unfollow_peft

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
