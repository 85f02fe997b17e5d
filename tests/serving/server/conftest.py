"""The shipped VLM, served with 18 of its 144 tokens a picture."""

from collections.abc import Iterator

import pytest

from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.evaluation.questions import TINY_VLM
from hf_efficient.serving.app import Service
from hf_efficient.serving.engine import PrunedModels, Source
from hf_efficient.serving.limits import Limits
from tests.serving.server.running import Client, running

BUDGET = 18


def tiny(config: TokenPrunerConfig | None, **limits: int) -> Service:
    """A service of the shipped model."""
    return Service(PrunedModels(Source(str(TINY_VLM), config, "tiny", device="cpu")), Limits(**limits))  # type: ignore[arg-type]


@pytest.fixture(scope="package")
def client() -> Iterator[Client]:
    """Of a server with limits that tests reach."""
    service = tiny(TokenPrunerConfig(budget=BUDGET), max_pictures=3, max_megapixels=1, max_media_mb=1, max_body_mb=8)
    with running(service) as client:
        yield client
