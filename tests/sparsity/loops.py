"""A small sparse classifier and the loop that trains it."""

from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn

from hf_efficient import BiDSTConfig
from hf_efficient.methods import SPARSITY, settings_of
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.tuner.layer import BiDSTLayer


def classifier(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    often = settings_of(SPARSITY, settings.get("topology", "bidst"), update_interval=4, score_interval=2)
    return get_peft_model(net, BiDSTConfig(**{"sparsity": 0.8, "target_modules": ["0", "2"], **often, **settings}))


def batches(count: int, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 32, 20, generator=generator)
    return [(part, part[:, :4].argmax(1)) for part in x]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def run(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Any]) -> None:
    for x, y in data:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: nn.Module) -> list[SparseWeight]:
    return [m.sparse_weight("default") for m in model.modules() if isinstance(m, BiDSTLayer)]


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
