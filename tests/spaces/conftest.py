"""The Space of a file of tests: its module says `SPACE`, its folder."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.spaces.running import import_app, served


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest) -> Any:
    """The Space's app.py as a module."""
    return import_app(request.module.SPACE)


@pytest.fixture(scope="module")
def url(app: Any) -> Iterator[str]:
    """Where it runs."""
    with served(app) as address:
        yield address
