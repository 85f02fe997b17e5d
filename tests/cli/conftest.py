"""What the tests of the command line share."""

from pathlib import Path

import pytest

from tests.scene_vlm import make_scene_vlm


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a stock model and processor."""
    folder = tmp_path_factory.mktemp("vlm")
    for part in make_scene_vlm():
        part.save_pretrained(folder)
    return folder
