"""BiDST and S2-SAM on several processes, in a loop of one's own, with DDP or FSDP2.

    accelerate launch --multi_gpu --num_processes 2 -m examples.several_processes --method bidst
    accelerate launch --multi_gpu --num_processes 2 -m examples.several_processes --method bidst --sharding fsdp2
    accelerate launch --multi_gpu --num_processes 2 -m examples.several_processes --method s2sam --sharding fsdp2

A small ViT learns which quarter of a picture is the brightest. accelerate's option is named for GPUs, but without one
the processes compute on the CPU. Both ways to share the work end with the same weights, saved whole by one process.
With the Trainer there is less to do: see sparse_from_scratch.py and text_classification.py, which run under
`accelerate launch` as they are (DDP).
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import ViTConfig, ViTForImageClassification

from hf_efficient import S2SAM, BiDSTConfig, train_sparsely


def vit() -> ViTForImageClassification:
    """The same weights in every process."""
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=28, patch_size=7, num_channels=1, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def pictures(step: int, count: int) -> tuple[Tensor, Tensor]:
    """(count, 1, 28, 28) of noise, and which quarter of each is brighter than the others."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(count, 1, 28, 28, generator=generator)
    y = torch.randint(4, (count,), generator=generator)
    for picture, quarter in zip(x, y.tolist(), strict=True):
        row, column = 14 * (quarter // 2), 14 * (quarter % 2)
        picture[:, row : row + 14, column : column + 14] += 0.3
    return x, y


def train(method: str, sharding: str, steps: int, device: torch.device) -> nn.Module:
    """All steps, on this process's rows of every batch; the model as it was before DDP was put around it."""
    model: Any = vit().to(device)
    if method == "bidst":
        model = get_peft_model(model, BiDSTConfig(sparsity=0.9, init="random", update_interval=max(1, steps // 20)))
    if sharding == "fsdp2":
        for module in [*(m for m in model.modules() if type(m).__name__ == "ViTLayer"), model]:
            fully_shard(module)  # before the optimizer is made
        wrapped = model
    else:
        wrapped = DistributedDataParallel(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any
    if method == "s2sam":
        optimizer = S2SAM(trained, torch.optim.AdamW, rho=0.05, lr=1e-3)
    else:
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        training = train_sparsely(model, optimizer, steps)
    for step in range(steps):
        x, y = (part.chunk(dist.get_world_size())[dist.get_rank()].to(device) for part in pictures(step, 64))
        if method == "s2sam":
            optimizer.perturb()
        nn.functional.cross_entropy(wrapped(x).logits, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    if method == "bidst" and dist.get_rank() == 0:
        print({name: round(value, 3) for name, value in training.report().items()})
    return model  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("bidst", "s2sam"), default="bidst")
    parser.add_argument("--sharding", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("several_processes"))
    arguments = parser.parse_args()

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    model: Any = train(arguments.method, arguments.sharding, arguments.steps, device)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # all ask
    if dist.get_rank() == 0:
        plain: Any = vit()
        if arguments.method == "bidst":
            plain = get_peft_model(plain, model.peft_config["default"])
        plain.load_state_dict(weights)
        if arguments.method == "bidst":
            plain = plain.merge_and_unload()
        plain.save_pretrained(arguments.output)
        x, y = pictures(arguments.steps, 1000)
        with torch.no_grad():
            print(f"accuracy {float((plain.eval()(x).logits.argmax(1) == y).float().mean()):.1%}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
