"""The shipped VLM with random weights, and scenes for it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from examples.tiny_vlm.architecture import make_processor, make_vlm
from examples.tiny_vlm.scenes import GARMENTS, IMAGE_SIDE, PLACE_SIDE, PLACES


def make_scene_vlm(seed: int = 0) -> tuple[Any, Any]:
    """Model and processor, untrained; weights are wide enough for answers to depend on what is shown and asked."""
    processor = make_processor()
    torch.manual_seed(seed)
    model = make_vlm(processor.tokenizer).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.generation_config.max_new_tokens = 4
    return model, processor


def save_vlm(folder: Path, seed: int = 0) -> str:
    """The model and processor of `make_scene_vlm` in a folder."""
    for part in make_scene_vlm(seed):
        part.save_pretrained(folder)
    return str(folder)


def make_scenes(folder: Path, scenes: int = 4, seed: int = 0) -> Path:
    """An evaluation set: grey images of rectangles on noise, three questions each."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(scenes):
        noise = bytes(chance.randrange(40) for _ in range(IMAGE_SIDE**2))
        image = Image.frombytes("L", (IMAGE_SIDE, IMAGE_SIDE), noise)
        pen = ImageDraw.Draw(image)
        for place in chance.sample(range(9), 3):
            x, y = place % 3 * PLACE_SIDE, place // 3 * PLACE_SIDE
            pen.rectangle((x + 4, y + 4, x + 27, y + 27), fill=chance.randrange(120, 255))
        name = f"images/{number:05d}.png"
        image.save(folder / name)
        garment, place_name = chance.choice(list(GARMENTS)), chance.choice(PLACES)
        questions = [
            {"question": f"what is at {place_name} ?", "answer": garment, "family": "at"},
            {"question": f"is there a {garment} ?", "answer": "yes", "family": "exists"},
            {"question": "list all .", "answer": f"{garment} bag", "family": "list"},
        ]
        lines.append(json.dumps({"file_name": name, "questions": questions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
