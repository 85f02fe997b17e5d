"""Tiny models for the tuner's tests."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_efficient import BiDSTConfig
from hf_efficient.sparsity.tuner.layer import BiDSTLayer

DELTA = {"target": "delta", "sparsity": 0.9, "task_type": "CAUSAL_LM"}
WEIGHT = {"target": "weight", "sparsity": 0.8, "task_type": "CAUSAL_LM"}
IDS = torch.arange(16).view(2, 8) % 60


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=14,
        patch_size=7,
        num_channels=1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=10,
    )
    return ViTForImageClassification(config).eval()


class ConvNet(nn.Module):
    """Convolution, batch norm, embedding, linear layers: x (B, 3, 8, 8) and ids (B,) -> (B, 5)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.emb = nn.Embedding(10, 72, padding_idx=0)
        self.hidden = nn.Linear(72, 20)
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        x = self.conv2(torch.relu(self.bn(self.conv1(x)))).flatten(1) + self.emb(ids)
        out: Tensor = self.fc(torch.relu(self.hidden(x)))
        return out


def convnet_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4)


def logits(model: nn.Module) -> Tensor:
    """Of a language model or classifier, for IDS, in eval mode."""
    with torch.no_grad():
        out: Tensor = model.eval()(input_ids=IDS).logits
    return out


def disturb(model: nn.Module, adapter: str = "default") -> None:
    """Give all trainable parameters of an adapter other values, as training would."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def few_steps(model: PreTrainedModel, steps: int = 3, learning_rate: float = 1e-2) -> None:
    """Train on the model's own inputs."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def config_of(settings: dict[str, Any], **more: Any) -> BiDSTConfig:
    return BiDSTConfig(**{"target_modules": "all-linear", **settings, **more})


def layers(model: nn.Module) -> dict[str, BiDSTLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, BiDSTLayer)}
