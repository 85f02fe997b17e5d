"""docs/model_types.md says of every image-text type what the code does with it."""

import pytest

from tests.zoo import CORE, REFUSED, ZOO
from tests.zoo.table import line, row, types


@pytest.fixture(scope="module")
def lines(repository):
    return (repository / "docs/model_types.md").read_text(encoding="utf-8").splitlines()


def test_the_page_has_every_type_once(lines):
    named = [one.split("`")[1] for one in lines if one.startswith("| `")]
    assert named == types()


@pytest.mark.parametrize("name", [n for n in types() if n not in ZOO])
def test_types_without_a_tiny_model_are_what_the_page_says(name, lines):
    assert line(name) in lines


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in ZOO if n in types()]
)
def test_types_with_a_tiny_model_are_what_the_page_says(name, lines):
    assert row(name)[0] == ("refused" if name in REFUSED else "proven")
    assert line(name) in lines
