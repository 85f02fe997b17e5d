"""Adapters that transformers adds and loads itself, which needs a release of PEFT that may not be out."""

import importlib.metadata

import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

#: transformers 5.24 asks for PEFT 0.22; PEFT's own get_peft_model and from_pretrained need neither.
BY_TRANSFORMERS = pytest.mark.skipif(
    Version(importlib.metadata.version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers adds and loads adapters with PEFT >= {MIN_PEFT_VERSION} alone",
)
