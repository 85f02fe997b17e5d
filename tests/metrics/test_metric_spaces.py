"""Metrics as Spaces of `evaluate`'s kind: their files, their pages over HTTP, and the upload."""

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from hf_efficient import metrics
from hf_efficient.metrics import page, spaces
from tests.conftest import ROOT
from tests.local_hub import LocalHub
from tests.metrics.test_metrics import CASES
from tests.spaces.front_matter import front_matter_errors
from tests.spaces.running import import_app, served
from tests.test_hub import run_against

PUSH_TWICE = """
from hf_efficient.metrics.spaces import push_to_hub

for _ in range(2):
    push_to_hub("sparsity", "tester/sparsity")
"""


def written(name: str, folder: Path) -> Path:
    """The Space's folder."""
    folder.mkdir()
    for file, text in spaces.files_of(name, f"me/{name}").items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", metrics.NAMES)
def test_a_space_has_what_the_hub_and_evaluate_ask_for(name: str, tmp_path: Path) -> None:
    folder = written(name, tmp_path / name)
    assert front_matter_errors(folder) == []
    assert f"\ngradio=={version('gradio')}\n" in (ROOT / "constraints.txt").read_text()
    assert (folder / f"{name}.py").read_text() == (Path(metrics.path(name)) / f"{name}.py").read_text()
    assert list(page.EXAMPLES[name]) == ["predictions", "references", *CASES[name][2]]
    with pytest.raises(ValueError, match=rf"expected \.\.\./{name}"):
        spaces.files_of(name, "me/another")


@pytest.mark.parametrize("name", metrics.NAMES)
def test_a_page_says_what_is_counted_by_hand(name: str, tmp_path: Path) -> None:
    predictions, references, more, wanted = CASES[name]
    app: Any = import_app(written(name, tmp_path / name))
    assert isinstance(app.demo, gr.Blocks)
    plain = lambda values: [v.tolist() if hasattr(v, "tolist") else v for v in values]
    fields = [plain(predictions), plain(references), *more.values()]
    found = page.computed(name, *map(json.dumps, fields))
    assert {key: found[key] for key in wanted} == pytest.approx(wanted)
    assert page.computed(name, *map(json.dumps, page.EXAMPLES[name].values()))  # what the page shows first


def test_a_page_over_http(tmp_path: Path) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    app = import_app(written("forgetting", tmp_path / "forgetting"))
    with served(app) as url:
        client = Client(url, verbose=False)
        assert client.predict("[0.5]", "[0.75]", api_name="/compute") == {"forgetting": 0.25, "largest": 0.25}
        with pytest.raises(AppError, match="expected as many"):
            client.predict("[0.5]", "[]", api_name="/compute")


@pytest.mark.parametrize(
    "value", [None, 3, "x", "{", "3", '["a"]', "[[1]]", "[true]", "null", "[" * 10**5, "9" * 10**6]
)
@pytest.mark.parametrize("name", ["forgetting", "sparsity", "video_quality"])
def test_what_cannot_be_read_gets_a_sentence(name: str, value: object) -> None:
    good = [json.dumps(one) for one in page.EXAMPLES[name].values()]
    for at in range(2):
        with pytest.raises(gr.Error, match=r"predictions|references") as caught:
            page.computed(name, *good[:at], value, *good[at + 1 :])
        assert len(caught.value.message) < 300


def test_what_is_not_finite_is_a_word() -> None:
    frames = json.dumps(page.EXAMPLES["video_quality"]["predictions"])
    assert page.computed("video_quality", frames, frames)["psnr_rgb"] == str(math.inf)


def test_a_metric_is_uploaded_as_a_space(tmp_path: Path) -> None:
    with LocalHub() as hub:
        run_against(hub, tmp_path, PUSH_TWICE)
        files = hub.repos["tester/sparsity"]
    for file, text in spaces.files_of("sparsity", "tester/sparsity").items():
        assert files[file].decode() == text
