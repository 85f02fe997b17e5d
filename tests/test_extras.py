"""A missing optional library is named with the line that installs it, whatever needed it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_efficient.extras import LIBRARIES, MissingExtra, extra
from tests.conftest import ROOT

# blocks a library, asks for every public name, and says which of them want which pip line
EVERY_NAME = """
import sys
sys.modules[{library!r}] = None
import hf_efficient
for name in {names}:
    try:
        getattr(hf_efficient, name)
    except ImportError as error:
        assert "pip install 'hf-efficient[" in str(error), f"{{name}}: {{error!r}}"
        assert {library!r} in str(error), f"{{name}}: {{error!r}}"
        print(name, str(error).split("[")[1].split("]")[0])
"""
SPARSE = {
    "BiDSTConfig", "BiDSTModel", "BiDSTTrainer", "SparsityCallback", "keep_sparsity", "prune_sparsegpt", "prune_wanda",
    "train_sparsely",
}  # fmt: skip
TRAINERS = {"SAMTrainer", "S2SAMTrainer", "ZOSAMTrainer", "SAMTrainerMixin"}


def refused(library: str, names: str = "hf_efficient.__all__") -> dict[str, str]:
    """Public name -> the extra that its error names, in a process without the library."""
    code = EVERY_NAME.format(library=library, names=names)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return dict(line.split() for line in run.stdout.splitlines())


def setup_extras() -> dict[str, str]:
    """Extra -> the text of its requirements in setup.py, names resolved."""
    text = (ROOT / "setup.py").read_text()
    lists = dict(re.findall(r"^([A-Z]+) = (\[[^\]]*\])", text, re.MULTILINE))
    table = text[text.index("extras_require={") : text.index("entry_points")]
    return {
        name: " ".join(lists[part.strip()] for part in parts.split("+"))
        for name, parts in re.findall(r'"(\w+)": ([A-Z +]+),', table)
    }


def test_every_library_is_in_the_extras_that_are_named() -> None:
    packages = {"imageio_ffmpeg": "imageio-ffmpeg", "sklearn": "scikit-learn"}
    for library, extras in LIBRARIES.items():
        for name in extras:
            assert f'"{packages.get(library, library)}>=' in setup_extras()[name], (library, name)


@pytest.mark.parametrize(("library", "name"), [("peft", "BiDSTConfig"), ("av", "fit_video")])
def test_a_public_name_says_what_to_install(library: str, name: str) -> None:
    assert refused(library, f"[{name!r}]") == {name: LIBRARIES[library][0]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "extra", "names"),
    [
        ("peft", "sparsity", SPARSE),
        ("av", "video", {"fit_video", "STDOPipeline"}),
        ("diffusers", "video", {"STDOPipeline"}),
        ("matplotlib", "plots", set()),
        ("torchvision", "vlm", set()),
        ("num2words", "vlm", set()),
        ("imageio_ffmpeg", "video", set()),
        ("gradio", "spaces", set()),
    ],
)
def test_every_public_name_without_a_library(library: str, extra: str, names: set[str]) -> None:
    assert refused(library) == dict.fromkeys(names, extra)


@pytest.mark.slow
def test_every_public_name_without_accelerate() -> None:
    found = refused("accelerate")
    assert {name for name, extra in found.items() if extra == "sparsity"} == SPARSE
    assert {name for name, extra in found.items() if extra == "training"} >= TRAINERS


def test_submodules_say_it_too() -> None:
    code = "import sys; sys.modules['av'] = None; import hf_efficient.video.files.reader"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr.strip().endswith("av is not installed: pip install 'hf-efficient[video]'")


def test_a_plot_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hf_efficient.optimization.sharpness import plot_landscape

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-efficient\[plots\]'"):
        plot_landscape({"a": {"loss": [1.0, 2.0]}}, [0.0, 1.0], str(tmp_path / "a.png"))


def test_a_library_that_transformers_names_in_words_is_known() -> None:
    with (
        pytest.raises(MissingExtra, match=r"^torchvision is not installed: pip install 'hf-efficient\[vlm\]'"),
        extra(),
    ):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found")
    with pytest.raises(MissingExtra, match=r"num2words.*\[vlm\]"), extra("vlm"):
        raise ImportError("Package `num2words` is required to run SmolVLM processor. Install it with pip")


@pytest.mark.parametrize("error", [ImportError("cannot import name 'x' from 'y'"), ModuleNotFoundError(name="zzz")])
def test_other_errors_stay_what_they_are(error: ImportError) -> None:
    with pytest.raises(type(error)) as caught, extra("vlm"):
        raise error
    assert caught.value is error


def test_a_release_without_a_name_is_not_told_as_missing() -> None:
    """Its own error says which name: "pip install" would help nobody."""
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'") as told, extra("sparsity"):
        from peft import no_such_name  # type: ignore[attr-defined]  # noqa: F401
    assert not isinstance(told.value, MissingExtra)
