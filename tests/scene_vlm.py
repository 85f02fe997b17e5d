"""A random VLM laid out as the shipped one (96 x 96 pictures, 12 x 12 visual tokens, [CLS]), and scenes for it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
GARMENTS = ["trouser", "pullover", "dress", "sandal", "bag", "boot"]
PLACES = ["top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right"]
WORDS = [*GARMENTS, *PLACES, *"what is at there a where the list all . ? yes no nothing 0 1 2 3 4 5".split()]
SIDE, PATCH, GRID = 96, 8, 12


def make_scene_vlm(seed: int = 0) -> tuple[Any, Any]:
    """Model and processor with random weights."""
    torch.manual_seed(seed)
    words = [*SPECIAL, *WORDS]
    words_to_ids = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = WhitespaceSplit()
    words_to_ids.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )
    side = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.max_new_tokens = 4
    return model, processor


def make_scenes(folder: Path, scenes: int = 4, seed: int = 0) -> Path:
    """An evaluation set: grey pictures of rectangles on noise, three questions each."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(scenes):
        picture = Image.frombytes("L", (SIDE, SIDE), bytes(chance.randrange(40) for _ in range(SIDE * SIDE)))
        pen = ImageDraw.Draw(picture)
        for place in chance.sample(range(9), 3):
            x, y = place % 3 * 32, place // 3 * 32
            pen.rectangle((x + 4, y + 4, x + 27, y + 27), fill=chance.randrange(120, 255))
        name = f"images/{number:05d}.png"
        picture.save(folder / name)
        garment, place_name = chance.choice(GARMENTS), chance.choice(PLACES)
        questions = [
            {"question": f"what is at {place_name} ?", "answer": garment, "family": "at"},
            {"question": f"is there a {garment} ?", "answer": "yes", "family": "exists"},
            {"question": "list all .", "answer": f"{garment} bag", "family": "list"},
        ]
        lines.append(json.dumps({"file_name": name, "questions": questions}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
