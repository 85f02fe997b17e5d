"""Others' loaders know our classes after `import hf_efficient` alone; every module can be imported first."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from peft import get_peft_model

import hf_efficient
from hf_efficient import STDOConfig, STDOModel
from tests.sparsity.models import DELTA, config_of, llama

LOADS = """
import json, sys, torch
adapter, stdo = sys.argv[1:]
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
assert type(PeftConfig.from_pretrained(adapter)).__name__ == "BiDSTConfig"
model = AutoPeftModelForCausalLM.from_pretrained(adapter)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageToImage
base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(adapter).base_model_name_or_path)
ids = torch.arange(8).view(1, 8)
expected = model(input_ids=ids).logits
assert torch.equal(PeftModel.from_pretrained(base, adapter)(input_ids=ids).logits, expected)
assert torch.equal(AutoModelForCausalLM.from_pretrained(adapter)(input_ids=ids).logits, expected)
assert type(AutoConfig.from_pretrained(stdo)).__name__ == "STDOConfig"
assert type(AutoModel.from_pretrained(stdo)).__name__ == type(AutoModelForImageToImage.from_pretrained(stdo)).__name__
print(type(AutoModel.from_pretrained(stdo)).__name__, any(
    layer.__class__.__module__ == "hf_efficient.sparsity.tuner.layer" for layer in model.modules()))
"""
ALONE = """
import importlib, sys, warnings
import torch, transformers, peft, peft.mapping as mapping
from transformers import Trainer, AutoModel
failed = {}
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "hf_efficient"]:
        del sys.modules[loaded]
    for finder in [f for f in sys.meta_path if type(f).__module__.startswith("hf_efficient")]:
        sys.meta_path.remove(finder)
    for kind in ("CONFIG", "TUNER", "PREFIX"):
        table = getattr(mapping, f"PEFT_TYPE_TO_{kind}_MAPPING")
        table.pop("BIDST", None), table.pop("bidst_", None)
    # as if neither library were there yet, so that nothing of ours is imported to be registered, and before `name`
    hidden = {m: sys.modules.pop(m) for m in ("peft", "transformers.models.auto.modeling_auto")}
    try:
        import hf_efficient
        sys.modules |= hidden
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
    finally:
        sys.modules |= hidden
print(failed)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("saved")
    llama().save_pretrained(folder / "base")
    base = llama()
    base.name_or_path = str(folder / "base")
    adapted = get_peft_model(base, config_of(DELTA, init="random"))
    adapted.save_pretrained(str(folder / "adapter"))
    STDOModel(STDOConfig(scale=2)).save_pretrained(folder / "stdo")
    return str(folder / "adapter"), str(folder / "stdo")


def python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_efficient.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("before", ["", "import peft; from transformers import AutoModel\n"])
def test_saved_models_load_after_the_import_of_the_package_alone(before: str, saved: tuple[str, str]) -> None:
    assert python(f"{before}import hf_efficient\n{LOADS}", *saved) == "STDOModel True"


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_module_can_be_the_first_that_is_imported(alone: bool) -> None:
    """In one process, in which the package is forgotten between two of them; the quick test asks folders alone."""
    found = [m for m in pkgutil.walk_packages(hf_efficient.__path__, "hf_efficient.") if m.ispkg or alone]
    names = [module.name for module in found if not module.name.endswith("__main__")]
    assert len(names) > (70 if alone else 20)
    assert python(ALONE, *names) == "{}"


def test_a_loader_is_left_as_it_was() -> None:
    import hf_efficient.files as ours

    assert "registration" not in type(ours.__loader__).__module__
    assert ours.__spec__ is not None
    assert ours.__spec__.loader is ours.__loader__
    assert "names it" not in (ours.__doc__ or "names it")
