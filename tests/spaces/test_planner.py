"""The planner Space: its functions, over HTTP, and in a browser at the widths of a desk and of a hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_efficient import EfficiencyPlan
from hf_efficient.budget.planner.limits import COSTS
from tests.conftest import ROOT
from tests.spaces.running import browser_page

SPACE = ROOT / "spaces" / "planner"
TOKENS = "fewer visual tokens"


def test_sliders_limit_what_can_be_limited(app: Any) -> None:
    assert {cost for cost, _ in app.LIMITS.values()} <= set(COSTS)


def test_over_http(url: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False)
    best, front, tried, file = client.predict(100, 50, 100, [TOKENS], 8, api_name="/plan")
    assert "itg" in best
    assert "What binds: key-value cache" in best
    with Image.open(front) as image:
        assert min(image.size) > 300
    assert tried.count("<tr>") >= 4  # the head, the stock model, the plan and those for the front
    made = EfficiencyPlan.from_dict({k: v for k, v in json.loads(Path(file).read_text()).items() if v and k not in
                                     ("format", "files")})  # fmt: skip
    assert made.token_pruner is not None
    assert made.token_pruner.budget < 144
    with pytest.raises(AppError, match="Nothing is limited"):
        client.predict(100, 100, 100, [TOKENS], 8, api_name="/plan")
    with pytest.raises(AppError, match="Allow at least one"):
        client.predict(100, 50, 100, [], 8, api_name="/plan")
    best, front, tried, file = client.predict(100, 100, 5, ["zeros, by Wanda"], 8, api_name="/plan")
    assert "This cannot be kept" in best
    assert "What binds: weights that no lever changes" in best
    assert front is file is None


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(url: str, width: int) -> None:
    with browser_page(url, width=width) as page:
        page.wait_for_selector("#find")
        for label in ("zeros, by SparseGPT", "zeros, by Wanda", "8 bits", "4 bits"):
            page.get_by_label(label, exact=True).uncheck()
        page.fill("#prefill_flops_nonzero input[type=number]", "100")
        page.fill("#cache_bytes input[type=number]", "50")
        page.fill("#questions input[type=number]", "8")
        page.click("#find")
        page.wait_for_selector("#best .figures")
        page.wait_for_selector("#front img")
        assert page.locator("#tried tr").count() >= 4
        assert page.inner_text("#file").startswith("The plan\nefficiency_p")  # Gradio breaks or cuts a long name
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width < 640:
            assert page.evaluate(TOO_SMALL) == []


#: What a finger is to hit and is lower than 40 px.
TOO_SMALL = """
Array.from(document.querySelectorAll('button, label:has(> input), input[type=range]'))
  .map(e => [e, e.getBoundingClientRect()])
  .filter(([e, r]) => r.width > 0 && r.height > 0 && r.height < 40 && !e.closest('footer'))
  .map(([e, r]) => e.outerHTML.slice(0, 90) + ' ' + r.height)
"""
