"""`hf-efficient env`: what a bug report needs."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from hf_efficient import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "pillow",
    "gradio",
)


def run(arguments: argparse.Namespace) -> None:
    """Print one `- name: value` line each, ready to be pasted. Installed versions are read without importing them."""
    lines = {"hf_efficient": __version__, "Python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            lines[name] = version(name)
        except PackageNotFoundError:
            lines[name] = "not installed"
    lines["cores"] = str(os.cpu_count())
    lines["accelerator"] = _accelerator()
    for name, value in lines.items():
        print(f"- {name}: {value}")


def _accelerator() -> str:
    try:
        import torch
    except ImportError:
        return "none"
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "none"
