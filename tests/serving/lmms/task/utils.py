"""The functions of `scenes.yaml`."""

from typing import Any

from PIL import Image


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(doc["file"]).convert("RGB")]


def text(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return str(doc["question"])
