"""Models for benchmarks, stored at half of their size."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from hf_efficient.files import written_whole


def export_half(run: Path, folder: Path, without: str | None = None) -> None:
    """Write a trained LLaVA with weights as float16; its config still says float32, which is what it is loaded as.

    Args:
        run: a folder saved by `save_pretrained`, processor included.
        folder: where to.
        without: prefix of the weights that are left out.
    """
    model = LlavaForConditionalGeneration.from_pretrained(run)
    kept = {
        name: value.to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
        if without is None or not name.startswith(without)
    }
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(folder / "model.safetensors") as draft:
        save_file(kept, draft, {"format": "pt"})
    model.config.vision_config.name_or_path = ""  # the folder where the tower was trained
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    LlavaProcessor.from_pretrained(run).save_pretrained(folder)
