"""A folder that is not there is called missing, and asked of nobody."""

from pathlib import Path
from typing import Any

import pytest

from hf_efficient import BiDSTConfig, TokenPrunerConfig, attach_token_pruner, load_sparse, load_token_pruned
from hf_efficient.files import is_local
from hf_efficient.representation.evaluation.questions import load_vlm
from hf_efficient.video.networks.modeling_stdo import STDOModel
from hf_efficient.video.play.pipeline_stdo import STDOPipeline
from tests.tiny import stock

NEITHER = ["./gone", "../gone", "/gone", "~/gone", "a/b/c", "gone/", "a b", "", ".gone", "x--y", "ü", "a\\b"]


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with nothing in it, and no way to the Hub."""
    import huggingface_hub.file_download as hub

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "get_hf_file_metadata", asked)


@pytest.mark.parametrize("name", [*NEITHER, Path("/gone"), Path("a/b/c")])
def test_what_is_no_id_is_missing(name: Any) -> None:
    with pytest.raises(FileNotFoundError, match="is missing: there is no such folder"):
        is_local(name)


@pytest.mark.parametrize("name", ["owner/name", "name", "o-1/n_2.3"])
def test_an_id_is_no_folder(name: str) -> None:
    assert not is_local(name)
    Path(name).mkdir(parents=True)
    assert is_local(name)
    assert is_local(Path(name))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="'file' is not a folder"):
        is_local("file")


@pytest.mark.parametrize("name", ["./gone", "~/gone", "a/b/c"])
@pytest.mark.parametrize(
    "load",
    [
        TokenPrunerConfig.from_pretrained,
        BiDSTConfig.from_pretrained,
        STDOModel.from_pretrained,
        STDOPipeline.from_pretrained,
        load_sparse,
        load_token_pruned,
        load_vlm,
        lambda name: load_token_pruned(name, TokenPrunerConfig()),
        lambda name: attach_token_pruner(*stock("llava"), name),
    ],
)
def test_every_loader_says_so(load: Any, name: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=f"'{name}' is missing: there is no such folder"):
        load(name)


def test_what_is_neither_here_nor_reachable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def unreachable(*_: object, **__: object) -> None:
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", unreachable)
    for load in (load_token_pruned, load_sparse):
        with pytest.raises(FileNotFoundError, match="'gone' is missing: there is no such folder"):
            load("gone")
