"""Every class that goes to the Hub and comes from it takes the Hub's arguments, against a Hub on loopback.

One interpreter for the whole table, since the libraries read HF_ENDPOINT when they are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.local_hub import LocalHub

#: Name -> (what makes one, how it is pushed, how it is loaded, what tells two of them apart).
CODE = '''
import torch
from huggingface_hub import HfApi
from peft import PeftModel, get_peft_model
from hf_efficient import (
    BiDSTConfig, EfficiencyPlan, STDOConfig, STDOModel, STDOPipeline, TokenPrunerConfig, attach_token_pruner,
    load_sparse, load_token_pruned, save_sparse,
)
from hf_efficient.representation.evaluation.questions import TINY_VLM, load_vlm
from pathlib import Path
from tempfile import TemporaryDirectory
from tests.optimization.training.trainers import bert
from tests.video.bundles import quick_bundle

class Pair:
    """A model and its processor, which go together."""

    def __init__(self, *both):
        self.both = both

    def push_to_hub(self, *args, **kwargs):
        for thing in self.both:
            thing.push_to_hub(*args, **kwargs)

    def save_pretrained(self, folder):
        for thing in self.both:
            thing.save_pretrained(folder)
class Folder:
    """What is saved into a folder, which is uploaded."""

    def __init__(self, save):
        self.save_pretrained = save

    def push_to_hub(self, repo, revision=None, token=None, create_pr=False):
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder + "/it")
            HfApi().create_repo(repo, exist_ok=True)
            HfApi().upload_folder(repo_id=repo, folder_path=folder + "/it", revision=revision, create_pr=create_pr)
class Film(Folder):
    """A pipeline; diffusers pushes to the main branch alone."""

    def __init__(self, pipe):
        super().__init__(pipe.save_pretrained)
        self.pipe = pipe

    def push_to_hub(self, repo, revision=None, **how):
        super().push_to_hub(repo, revision) if revision else self.pipe.push_to_hub(repo, **how)
def sparse(n):
    model = bert()
    with torch.no_grad():
        model.classifier.weight.fill_(0.0)[0, :n] = 1.0
    return Folder(lambda folder: save_sparse(model, folder))
def film(n):
    return Film(STDOPipeline.from_pretrained(quick_bundle(Path(f"FOLDER/film{n}"), num_features=2 + n).path))
def pruned(n):
    return Pair(*attach_token_pruner(*load_vlm(TINY_VLM), TokenPrunerConfig(budget=n)))
def adapter(n):
    return get_peft_model(bert(), BiDSTConfig(target="delta", sparsity=0.9 - n / 100))
def stdo(n):
    return STDOModel(STDOConfig(num_features=2 + n, num_blocks=1))
TABLE = {
    "TokenPrunerConfig": (lambda n: TokenPrunerConfig(budget=n), TokenPrunerConfig.from_pretrained, lambda c: c.budget),
    "EfficiencyPlan": (
        lambda n: EfficiencyPlan(token_pruner=TokenPrunerConfig(budget=n)),
        EfficiencyPlan.from_pretrained, lambda p: p.token_pruner.budget,
    ),
    "a pruned model": (pruned, lambda *a, **k: load_token_pruned(*a, **k)[0], lambda m: m.token_pruner.config.budget),
    "a sparse adapter": (
        adapter, lambda *a, **k: PeftModel.from_pretrained(bert(), *a, **k),
        lambda m: round((0.9 - m.peft_config["default"].sparsity) * 100),
    ),
    "STDOModel": (stdo, STDOModel.from_pretrained, lambda m: m.config.num_features - 2),
    "STDOPipeline": (film, STDOPipeline.from_pretrained, lambda p: p.model.config.num_features - 2),
    "a sparse model": (sparse, load_sparse, lambda m: int((m.classifier.weight == 1).sum())),
}
def push(thing, repo, **how):
    return thing.push_to_hub(repo, token="hf_local", **how)
Path("FOLDER").mkdir()
for name, (make, load, told) in TABLE.items():
    repo = "tester/" + name.replace(" ", "-")
    push(make(1), repo)
    HfApi().create_branch(repo, branch="two", exist_ok=True)
    push(make(2), repo, revision="two")
    push(make(3), repo, create_pr=True)
    access = {"token": "hf_local", "cache_dir": "CACHE"}
    found = [told(load(repo, revision=r, **access)) for r in ("main", "two", "refs/pr/1")]
    assert found == [1, 2, 3], (name, found)
    assert told(load(repo, local_files_only=True, **access)) == 1, name
    try:
        load(repo, local_files_only=True, token="hf_local", cache_dir="EMPTY")
    except (OSError, ValueError) as error:
        assert repo in str(error) or "cache" in str(error) or "offline" in str(error).lower(), (name, error)
    else:
        raise AssertionError(f"{name} was loaded without network and cache")
    make(4).save_pretrained("FOLDER/" + repo)
    HfApi().upload_folder(repo_id=repo, folder_path="FOLDER/" + repo, path_in_repo="inside")
    assert told(load(repo, subfolder="inside", **access)) == 4, name
    print(name)
'''


@pytest.mark.slow
def test_every_class_takes_the_arguments_of_the_hub(tmp_path: Path) -> None:
    code = CODE
    for word in ("CACHE", "EMPTY", "FOLDER"):
        code = code.replace(word, str(tmp_path / word.lower()))
    with LocalHub() as hub:
        done = subprocess.run(
            [sys.executable, "-c", code], env=hub.environment(tmp_path), cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(done.stdout.splitlines()) == 7


@pytest.mark.slow
def test_a_command_uploads_what_it_saved(tmp_path: Path) -> None:
    from hf_efficient.representation.evaluation.questions import TINY_VLM

    with LocalHub() as hub:
        command = [sys.executable, "-m", "hf_efficient.cli", "prune", str(TINY_VLM), str(tmp_path / "out")]
        command += ["--budget", "9", "--push-to-hub", "tester/pruned"]
        done = subprocess.run(command, env=hub.environment(tmp_path / "home"), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Uploaded to" in done.stdout
        there = {name for name in hub.repos["tester/pruned"] if name != ".gitattributes"}
        assert there == {path.name for path in (tmp_path / "out").iterdir()}
        assert b"load_token_pruned" in hub.repos["tester/pruned"]["README.md"]
