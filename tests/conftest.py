"""Environment of every test: offline, a home of its own, one thread, no telemetry.

The variables are read when the libraries are imported, so they are set here, above all imports.
"""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_efficient_tests_")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# tiny models: a second thread only spins
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return ROOT


@pytest.fixture(scope="module", autouse=True)
def frozen_libraries() -> None:
    """What the libraries hold is not looked through again: every Trainer collects garbage, a second of each test."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
