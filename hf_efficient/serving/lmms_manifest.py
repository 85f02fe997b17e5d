"""How lmms-eval finds our model: the entry point `hf_efficient` of the group `lmms_eval.models`."""

from __future__ import annotations

from typing import Any

MODEL = "hf_efficient"


def manifest() -> Any:
    """The name, and the class behind it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path="hf_efficient.serving.lmms_model.HfEfficient")
