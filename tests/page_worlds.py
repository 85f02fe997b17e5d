"""What the code of the pages finds before it: models, data and files of the size of a test.

A page's code is of somebody who has a model, a data set and a Trainer's arguments. Here is a small one of each, and in
`REPLACED` everything of the code itself that a test exchanges.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from torch.nn import functional as F

import hf_efficient
from hf_efficient.representation.evaluation.questions import TINY_VLM, load_evaluation_set
from tests.budget.plans import plan
from tests.budget.test_efficient_trainer import rows as vlm_rows
from tests.optimization.training.trainers import arguments, bert, causal_rows, rows
from tests.scene_vlm import make_scene_vlm
from tests.sparsity.models import llama
from tests.sparsity.pruned.models import pruned
from tests.sparsity.storage.test_bitmask import checkpoint
from tests.tiny import stock
from tests.video.bundles import QUICK, quick_bundle, source_clip

World = dict[str, Any]

#: In the code of a page -> what is run.
REPLACED = {
    "llava-hf/llava-1.5-7b-hf": str(TINY_VLM),
    "runs/photo_vlm": str(TINY_VLM),
    '"hf_efficient/assets': f'"{TINY_VLM.parent}',
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3_vl",
    "Qwen/Qwen3-0.6B": "causal",
    "neuralmagic/a-sparse-model": "old-checkpoint",
    '"plain/"': '"plainer/"',
    "THIS_FOLDER_OR_HUB_ID": "bundle",
    "scale=2, steps=1500": ", ".join(f"{name}={value!r}" for name, value in QUICK.items()),
    'pipe.push_to_hub("me/my-clip")': "",  # tests/video/play/test_hugging_face.py
    'push_to_hub("forgetting", "me/forgetting")': "",  # tests/metrics
    '.to("cuda", torch.bfloat16)': ".to(torch.bfloat16)",
    '"40MB"': '"100%"',
    '"answer": answer}, ...]': '"answer": answer}] * 4',
    "prompts by this processor\n    ...": "prompts by this processor\n    return 1.0",
    'SFTConfig("out")': 'SFTConfig("out", max_steps=1, report_to="none", use_cpu=True, save_strategy="no")',
}
#: Also there, where networks are named whose training takes an hour: their settings are made.
IN_THE_INDEX = {"from hf_efficient import fit_video": "", 'fit_video("in.mp4", "bundle/", ': "FitSettings("}
#: Code that is not run, and where it is instead.
NOT_RUN = {
    "docs/vllm.md-0": "needs vLLM: tests/serving/vllm/test_against_transformers.py asks with such budgets",
    "docs/serving.md-0": "needs a server: tests/serving/server asks one with the same messages",
    "docs/distributed.md-0": "needs several processes: tests/sparsity/tuner/test_ranks.py resumes so",
    "docs/bidst.md-3": "needs several processes: tests/sparsity/tuner/test_fsdp2.py shards so",
}


def everyday() -> World:
    """What a script imports before the lines of a page."""
    names = {"torch": torch, "dataclasses": dataclasses, "np": np}
    for module, wanted in (
        (transformers, "AutoModelForCausalLM AutoModelForImageTextToText AutoProcessor BitsAndBytesConfig Trainer"),
        (peft, "LoraConfig get_peft_model prepare_model_for_kbit_training"),
        (hf_efficient, " ".join(hf_efficient.__all__)),
    ):
        names |= {name: getattr(module, name) for name in wanted.split()}
    return names


def classifier(folder: Path) -> World:
    """A text classifier to be trained, alone, in a Trainer and in a loop."""
    batches = [{"input_ids": row["input_ids"][None], "labels": torch.tensor([row["labels"]])} for row in rows(4)]
    model, x, y = bert(), torch.stack([row["input_ids"] for row in rows(4)]), torch.tensor([0, 1, 2, 0])
    return {
        "model": model, "args": arguments(folder / "out", max_steps=2), "data": rows(), "batches": batches, "x": x,
        "y": y, "loss_of": lambda output, y: F.cross_entropy(output.logits, y), "parameters": model.parameters(),
        "a": bert(), "b": bert(), "t": [-0.1, 0.0, 0.1],
        "peft_model": peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS")),
    }  # fmt: skip


def sparse_classifier(folder: Path) -> World:
    """The classifier with a mask, for what follows its making."""
    world = classifier(folder)
    settings = hf_efficient.BiDSTConfig(sparsity=0.5, target_modules=["query"])
    return world | {"model": peft.get_peft_model(world["model"], settings)}


def causal(folder: Path) -> World:
    """Causal language models: pruned ones in the folders that the pages name, and one in memory."""
    pruned(llama()).save_pretrained(folder / "a-pruned-model")
    llama().save_pretrained(folder / "model")
    checkpoint(folder / "old-checkpoint")
    data = causal_rows()
    return {
        "model": pruned(llama()), "args": arguments(folder / "out", max_steps=2), "data": data,
        "batches": [{"input_ids": torch.stack([row["input_ids"] for row in data[:4]])}],
    }  # fmt: skip


def dense_causal(folder: Path) -> World:
    """As `causal`, with nothing pruned in memory."""
    return causal(folder) | {"model": llama()}


def scenes(folder: Path) -> World:
    """The shipped VLM's kind with random weights, a picture, a prompt, and features."""
    model, processor = make_scene_vlm()
    generator = torch.Generator().manual_seed(0)
    kept = hf_efficient.TokenPrunerConfig("itg", budget=4)
    kept.save_pretrained(folder / "runs/itg/pruner")
    stock("qwen3_vl")[0].save_pretrained(folder / "qwen3_vl")
    stock("qwen3_vl")[1].save_pretrained(folder / "qwen3_vl")
    pruned_model = make_scene_vlm()
    hf_efficient.attach_token_pruner(*pruned_model, hf_efficient.TokenPrunerConfig(budget=20))
    for part in pruned_model:
        part.save_pretrained(folder / "pruned")
    return {
        "model": model, "processor": processor, "image": load_evaluation_set()[0].image.convert("RGB"),
        "prompt": "<image> what is at left ?", "features": torch.randn(2, 144, 16, generator=generator),
        "other_level": torch.randn(2, 144, 8, generator=generator), "config": hf_efficient.TokenPrunerConfig(budget=20),
        "answers": ["bag", "yes"], "right": ["bag", "no"], "answers_with_all_tokens": ["bag", "no"],
    }  # fmt: skip


def measured(folder: Path) -> World:
    """A tiny VLM, inputs, and a row to choose a plan on."""
    model, processor = make_scene_vlm()
    scene = load_evaluation_set()[0]
    given = processor(images=[scene.image.convert("RGB")], text=["<image> what is at left ?"], return_tensors="pt")
    return {
        "inputs": dict(given), "trainer": None, "pruned_report": hf_efficient.measure(model, given), "model": model,
        "processor": processor, "image": scene.image, "question": "what is at left ?", "answer": "bag",
        "batches": [given],
    }  # fmt: skip


def planned(folder: Path) -> World:
    """A tiny VLM under a plan, and rows to train it on."""
    chosen = plan()
    model, processor = chosen.apply(*stock("llava"))
    return {
        "plan": chosen, "found": chosen, "model": model, "processor": processor, "data": vlm_rows(processor),
        "args": arguments(folder / "out", max_steps=3, per_device_train_batch_size=1, save_strategy="epoch"),
        "collate": None,
    }  # fmt: skip


def film(folder: Path) -> World:
    """A clip, and a bundle of another."""
    source_clip(folder, audio=None).rename(folder / "in.mp4")
    return {}


def bundle(folder: Path) -> World:
    """A bundle."""
    quick_bundle(folder / "made").path.rename(folder / "bundle")
    return {}


def chat(folder: Path) -> World:
    """A causal model with a tokenizer, and texts."""
    from tests.tiny_models import make_tokenizer

    llama().save_pretrained(folder / "causal")
    make_tokenizer([]).save_pretrained(folder / "causal")
    from datasets import Dataset
    from trl import SFTConfig

    return {"data": Dataset.from_dict({"text": ["w1 w2 w3", "w2 w3 w4"] * 4}), "SFTConfig": SFTConfig}


#: Page, or page and number of the code -> what it finds.
WORLDS: dict[str, Callable[[Path], World]] = {
    "docs/bidst.md": classifier,
    "docs/bidst.md-1": dense_causal,
    "docs/bidst.md-2": sparse_classifier,
    "docs/bidst.md-5": dense_causal,
    "docs/budget.md": measured,
    "docs/budget.md-3": planned,
    "docs/budget.md-4": planned,
    "docs/families.md": scenes,
    "docs/how_to/qwen3_vl.md": scenes,
    "docs/how_to/sft_trainer.md": chat,
    "docs/how_to/sparseml.md": causal,
    "docs/id_pruner.md": scenes,
    "docs/itg.md": scenes,
    "docs/metrics.md": scenes,
    "docs/paper_index.md": film,
    "docs/pruned.md": causal,
    "docs/quick_start.md": classifier,
    "docs/quick_start.md-1": scenes,
    "docs/quick_start.md-2": scenes,
    "docs/s2_sam.md": classifier,
    "docs/sam.md": classifier,
    "docs/stdo.md": film,
    "docs/zo_sam.md": classifier,
    "model_cards/bidst.md": classifier,
    "model_cards/id_pruner.md": scenes,
    "model_cards/itg.md": scenes,
    "model_cards/photo_vlm.md": scenes,
    "model_cards/s2_sam.md": classifier,
    "model_cards/stdo.md": bundle,
    "model_cards/tiny_vlm.md": scenes,
    "model_cards/zo_sam.md": classifier,
}
