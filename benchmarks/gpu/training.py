"""Sharpness-aware steps of a ViT beside the plain step, and 2:4 layers beside dense ones."""

import copy
import statistics
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from benchmarks.gpu.correctness import deviation
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.sizes import Sizes
from benchmarks.harness.timing import clock_of, median_ms, ratio, time_in_turns
from benchmarks.optimization.sam_trainer_steps import trainer_steps
from benchmarks.sparsity.semi_structured import measured
from hf_efficient import BiDSTConfig, compress, train_sparsely

METHODS = ["plain", "S2-SAM", "ZO-SAM, half the batch", "ZO-SAM", "guided ZO-SAM", "SAM"]
UNEVEN = ("ZO-SAM",)  # of whose steps half take a pass more, so that a median would show but one kind


class InHalf(nn.Module):
    """A model under autocast to bfloat16, which accelerate would put around it when a training begins."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        self.model, self.device_type = model, device

    def forward(self, **inputs: Any) -> Any:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.model(**inputs)


def vit(device: str, sizes: Sizes) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A ViT with random weights, and a batch."""
    hidden, layers, side, batch = sizes.vit
    config = ViTConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden, image_size=side, num_labels=100,
    )  # fmt: skip
    with torch.device(device):
        inputs = {"pixel_values": torch.randn(batch, 3, side, side), "labels": torch.arange(batch) % 100}
        return InHalf(ViTForImageClassification(config), device), inputs


def sam_steps(device: str, sizes: Sizes, found: Findings) -> None:
    """Ratios of whole steps of the Trainer, in bf16 autocast; and that weights come back to the last bit."""
    model, inputs = vit(device, sizes)
    steps = trainer_steps(lambda batch: (model, inputs), sizes.vit[3], METHODS, use_cpu=device == "cpu")
    for name, (trainer, step) in steps.items():
        step()  # the first step of a method that remembers the last one is not what it does afterwards
        before = {key: value.clone() for key, value in model.state_dict().items()}
        trainer.training_step(model, dict(inputs))
        model.zero_grad()
        changed = sum(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
        found.add(f"{name}: tensors that training_step did not bring back", float(changed), 0.0)
    seconds = time_in_turns({n: s for n, (_, s) in steps.items()}, 2 * sizes.rounds, clock=clock_of(device))
    found.add("plain step, ms", median_ms(seconds["plain"]))
    for name in METHODS[1:]:
        middle = statistics.fmean if name in UNEVEN else statistics.median
        found.add(f"{name}: step / plain step", ratio(seconds, name, "plain", middle))


def two_of_four(device: str, sizes: Sizes, found: Findings) -> None:
    """A network that BiDST trained with a 2:4 pattern, compressed; then layers of the size of a language model's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64)).to(device)
    model = get_peft_model(net, BiDSTConfig(pattern="2:4", target_modules=["0", "2"], update_interval=5))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    training = train_sparsely(model, optimizer, 20)
    for _ in range(20):
        x = torch.randn(64, 128, device=device)
        nn.functional.cross_entropy(model(x), x[:, :64].argmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    found.add("BiDST 2:4: inactive share, deviation from one half", abs(training.report()["sparsity"] - 0.5), 0.0)
    dense: Any = model.merge_and_unload().bfloat16().eval()  # type: ignore[operator]
    sparse = compress(copy.deepcopy(dense), backend="semi_structured")
    with torch.no_grad():
        x = torch.randn(64, 128, device=device).bfloat16()
        found.add("BiDST 2:4, compressed: outputs, deviation", deviation(sparse(x), dense(x)), 0.02)
    made = sum(type(layer.weight) is not nn.Parameter for layer in (sparse[0], sparse[2]))  # type: ignore[index]
    note = "" if made else "no layer became semi-structured here: that needs a GPU of Ampere or later"
    found.add("BiDST 2:4, compressed: layers that are not", float(2 - made), 0.0 if device != "cpu" else None, note)
    for shape in sizes.linear:
        for tokens in sizes.activations:
            row = measured(shape, tokens, torch.bfloat16, device)
            where = f"2:4 layer {shape}, {tokens} activations"
            found.add(f"{where}: dense / 2:4", row["faster"], None, "chosen by compress(model)" if row["auto"] else "")
            found.add(f"{where}: outputs, deviation", row["deviation"], 0.02)
