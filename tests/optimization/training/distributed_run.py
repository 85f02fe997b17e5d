"""Run by torchrun in the tests: trains with every method, and writes each rank's weights to a folder."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, Trainer, TrainingArguments

from hf_efficient import SAMArguments, SAMTrainer

WIDTH = 1400  # of the first layer: more bytes than exchange.LEAST
METHODS = {
    "plain": SAMArguments(rho=0.0),
    "sam": SAMArguments("sam"),
    "s2sam": SAMArguments("s2sam"),
    "zosam": SAMArguments("zosam", num_queries=2),
    "guided": SAMArguments("zosam", guided=True, num_queries=2),
    "guided, one pass": SAMArguments("zosam", guided=True),
    "looksam": SAMArguments("looksam", reuse_interval=2),
    "msam": SAMArguments("msam"),
    "merged": SAMArguments("sam", perturb="merged"),  # with LoRA, whose factors cannot be sharded
}


class Net(nn.Module):
    """float64, so that sums in another order agree to many digits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, WIDTH, dtype=torch.float64), nn.Linear(WIDTH, 4, dtype=torch.float64)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.second(torch.tanh(self.first(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(6, generator=generator, dtype=torch.float64), "labels": i % 4} for i in range(32)]


def sharded() -> Net:
    """As transformers shards a model at load time; on the CPU accelerate does not offer FSDP."""
    net: Any = Net()
    for module in (net.first, net):  # the root has weights of its own
        fully_shard(module)
    net.is_distributed_loading_by_transformers = True
    net.config = PreTrainedConfig()
    net.config.distributed_config = SimpleNamespace(dp_replicate_size=1)  # what the Trainer asks for
    return net


def adapted() -> Any:
    """LoRA on the first layer, after some steps: B is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["first"], modules_to_save=["second"], init_lora_weights=False)
    return get_peft_model(Net(), config).double()


def train(
    folder: Path, method: SAMArguments | None, batch: int, mode: str = "ddp", accumulation: int = 2, **kwargs: Any
) -> Trainer:
    """In mode "ddp" (or alone) or "fsdp"; no method: the stock Trainer."""
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=6,
        learning_rate=0.1, optim="sgd", optim_args="momentum=0.9", lr_scheduler_type="constant", report_to="none",
        disable_tqdm=True, use_cpu=True, train_sampling_strategy="sequential", **{"save_strategy": "no", **kwargs},
    )  # fmt: skip
    cls: Any = Trainer if method is None else SAMTrainer
    ours = {} if method is None else {"sam_args": method}
    alone = adapted if method is not None and method.perturb == "merged" else Net
    trainer = cls(sharded() if mode == "fsdp" else alone(), args, train_dataset=data(), eval_dataset=data()[:4], **ours)
    trainer.train(resume_from_checkpoint=kwargs.get("resume_from_checkpoint"))
    return trainer


def methods_of(mode: str) -> dict[str, SAMArguments]:
    """Those that work in this mode."""
    return {name: method for name, method in METHODS.items() if mode == "ddp" or method.perturb == "weights"}


def accumulation_of(name: str) -> int:
    """Two micro-batches, but for the method that takes one of its probes as the step's own pass."""
    return 1 if name.endswith("one pass") else 2


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Full tensors, also of a sharded model."""
    full = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in model.named_parameters()}
    return {n.replace("module.", ""): p.detach().clone() for n, p in full.items()}


if __name__ == "__main__":
    target, mode = Path(sys.argv[1]), sys.argv[2]
    for name, method in {"stock": None, **methods_of(mode)}.items():
        trainer = train(target / name, method, 2, mode, accumulation_of(name))
        rank = trainer.accelerator.process_index
        assert all(isinstance(p, DTensor) == (mode == "fsdp") for p in trainer.model.parameters())
        save_file(whole(trainer.model), target / f"{name}_{rank}.safetensors")
    trainer = train(target / "evaluated", METHODS["s2sam"], 2, mode, eval_strategy="steps", eval_steps=1)
    save_file(whole(trainer.model), target / f"evaluated_{rank}.safetensors")
    if mode == "ddp":  # broken off after three steps, and taken up again
        train(target / "resumed", METHODS["s2sam"], 2, mode, save_strategy="steps", save_steps=3)
        checkpoint = str(target / "resumed" / "checkpoint-3")
        trainer = train(target / "resumed", METHODS["s2sam"], 2, mode, resume_from_checkpoint=checkpoint)
        save_file(whole(trainer.model), target / f"resumed_{rank}.safetensors")
