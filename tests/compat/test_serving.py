"""The names of transformers' server code are watched where it can be imported, and its absence is told."""

import importlib.util

import pytest

from hf_efficient.compat import transformers_serving
from hf_efficient.compat.names import tables
from hf_efficient.extras import MissingExtra


def test_its_names_are_among_those_of_transformers() -> None:
    table = tables("transformers")
    assert transformers_serving.is_installed()
    assert transformers_serving.OVERRIDDEN.items() <= table.OVERRIDDEN.items()
    assert transformers_serving.CALLED.items() <= table.CALLED.items()


@pytest.mark.parametrize("library", transformers_serving.NEEDED)
def test_what_is_missing_is_named_with_its_pip_line(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(transformers_serving, "find_spec", lambda name: None if name == library else real(name))
    with pytest.raises(MissingExtra, match=rf"{library} is not installed: pip install 'hf-efficient\[serving\]'"):
        transformers_serving.check_installed()
