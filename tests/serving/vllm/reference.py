"""What transformers answers with the pruner attached: `python -m tests.serving.vllm.reference JOB.json OUT.json`.

Runs in an environment with transformers >= 5.23, which vLLM does not take. The job names a family, a folder for its
tiny model, a kind of prompts, and configs by name; of each config come, for every prompt, its length, the tokens that
were generated and their log-probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from hf_efficient import attach_token_pruner
from hf_efficient.representation.config import TokenPrunerConfig
from tests import tiny, tiny_models
from tests.serving.vllm import cases


def build(family: str, folder: Path) -> None:
    """Save a tiny random model of a family, its heads as wide as vLLM's kernels ask."""
    if (folder / "config.json").exists():
        return
    tiny_models.TEXT.update(hidden_size=128, intermediate_size=128)
    model, processor = tiny.FAMILIES[family].build()
    if family == "gemma3":  # vLLM asks for these words of its vocabulary by name
        processor.tokenizer.add_tokens(["\n" * count for count in (4, 3, 2, 1)])
    if family == "qwen3_vl":  # as in its checkpoints
        processor.image_processor.image_mean = processor.video_processor.image_mean
        processor.image_processor.image_std = processor.video_processor.image_std
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def inputs_of(family: str, processor: Any, text: str, sizes: list[Any], clips: bool) -> Any:
    """One prompt with its pictures or videos, as the processor takes them."""
    if clips:
        return processor(text=[text], videos=[cases.clip(*sizes[0])], return_tensors="pt")
    images: Any = cases.pictures(sizes)
    return processor(text=[text], images=[images] if tiny.FAMILIES[family].nested else images, return_tensors="pt")


@torch.no_grad()
def answer(model: Any, inputs: Any, tokens: int) -> dict[str, Any]:
    """Greedy tokens of a fixed number, and their log-probabilities."""
    out = model.generate(
        **inputs, max_new_tokens=tokens, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    length = inputs["input_ids"].shape[1]
    made = out.sequences[0, length:].tolist()
    logprobs = [float(x[0].float().log_softmax(-1)[t]) for x, t in zip(out.logits, made)]
    return {"length": length, "tokens": made, "logprobs": logprobs}


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Answers by config and prompt."""
    torch.set_num_threads(1)
    family, folder = job["family"], Path(job["folder"])
    build(family, folder)
    found: dict[str, Any] = {}
    for name, values in job["configs"].items():
        model = hf.AutoModelForImageTextToText.from_pretrained(folder).eval()
        processor = hf.AutoProcessor.from_pretrained(folder)
        if values is not None:  # vLLM numbers tokens with one-axis positions without gaps
            positions = {} if family.startswith("qwen") else {"positions": "compact"}
            attach_token_pruner(model, processor, TokenPrunerConfig.from_dict(positions | values))
        found[name] = [
            answer(model, inputs_of(family, processor, text, sizes, job["kind"] == "clips"), cases.TOKENS)
            for text, sizes in cases.prompts(family, job["kind"])
        ]
    return found


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    result = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(result))
