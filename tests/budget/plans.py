"""Plans and tiny models for their tests."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_efficient import BiDSTConfig, EfficiencyPlan, SAMArguments, TokenPrunerConfig
from tests.sparsity.models import disturb
from tests.tiny import prompts, stock

LAYERS = ["up_proj", "down_proj"]


def plan(**parts: Any) -> EfficiencyPlan:
    """A plan for the tiny LLaVA with all parts but precision, unless told otherwise."""
    made: dict[str, Any] = {
        "token_pruner": TokenPrunerConfig("divprune", budget=4),
        "sparsity": BiDSTConfig(
            sparsity=0.9, target="delta", target_modules=LAYERS, update_interval=1, stop_fraction=1.0
        ),
        "sam": SAMArguments("s2sam", rho=0.1),
    }
    return EfficiencyPlan(**{**made, **parts})


def applied(chosen: EfficiencyPlan) -> tuple[Any, Any]:
    """The tiny LLaVA under a plan, its adapter as if it had been trained."""
    model, processor = chosen.apply(*stock("llava"))
    if chosen.sparsity is not None:
        disturb(model)
    return model.eval(), processor


def logits(model: nn.Module, processor: Any) -> torch.Tensor:
    """(2, T, V), of two prompts with images."""
    with torch.no_grad():
        out: torch.Tensor = model(**processor(**prompts("llava", [[0], [1]]))).logits
    return out


def files(folder: Any) -> dict[str, bytes]:
    """Path -> content of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def llama(width: int = 64) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=50)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def text_inputs(processor: Any, rows: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.stack([row["ids"] for row in rows])}


TEXT = [{"ids": (torch.arange(12) * (i + 3)) % 50} for i in range(16)]
