"""The training Space: its functions, over HTTP, and in a browser."""

import re
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.spaces.running import browser_page, import_app

SPACE = ROOT / "spaces" / "training"


@pytest.fixture(scope="module")
def app() -> Any:
    module = import_app(SPACE)
    module.STEPS = 60
    return module


def test_no_digit_is_both_trained_and_tested(app: Any) -> None:
    from sklearn.datasets import load_digits

    train, test = app.digits()
    both = torch.cat([train.x, test.x]) * 16
    known = torch.tensor(load_digits().data, dtype=torch.float32)
    assert torch.equal(both.unique(dim=0), known.unique(dim=0))
    assert len(both) == len(known)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_share_of_the_labels_is_wrong(app: Any, share: float) -> None:
    train = app.digits()[0]
    assert int((app.mislabel(train, share, 3).y != train.y).sum()) == round(share * len(train.y))


def test_without_distance_every_method_trains_plainly(app: Any) -> None:
    plain = app.train(app.PLAIN, 0.0, 0.4, 0.0, "bidst", 1).model.state_dict()
    for method in (app.S2, app.ZO, app.FULL):
        other = app.train(method, 0.0, 0.4, 0.0, "bidst", 1).model.state_dict()
        assert all(torch.equal(plain[name], other[name]) for name in plain), method


@pytest.mark.parametrize("method", ["S2-SAM", "SAM"])
def test_sparse_networks_have_the_weights_they_may_have(app: Any, method: str) -> None:
    run = app.train(method, 0.2, 0.4, 0.9, "bidst", 0)
    whole = 64 * 128 + 128 * 128
    rest = 128 + 128 + 10 * 128 + 10
    assert run.weights == pytest.approx(0.1 * whole + rest, abs=1)


def test_over_http(url: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False)
    drawn, figures = client.predict(["plain", "S2-SAM"], 0.2, 40, "95 % pruned", "rigl", 0, api_name="/compare")
    with Image.open(drawn) as image:
        assert min(image.size) > 300
    assert len(re.findall(r"<td>(?:<b>)?[\d.]+%", figures)) == 2
    assert figures.count("<b>") >= 1
    with pytest.raises(AppError, match="Tick at least one"):
        client.predict([], 0.2, 40, "all weights", "bidst", 0, api_name="/compare")


def test_in_a_browser(url: str) -> None:
    with browser_page(url) as page:
        page.get_by_label("SAM", exact=True).uncheck()
        page.click("#train")
        page.wait_for_selector("#figures .figures", timeout=120_000)
        page.wait_for_selector("#landscape img")
        assert page.locator("#figures tr").count() == 3
