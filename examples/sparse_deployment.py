"""A pruned model that stays pruned, and is smaller and faster for it: `python -m examples.sparse_deployment`.

MiniLM-L6 is pruned to 95 % by magnitude, fine-tuned without losing a single zero, written to a file a fraction of the
size, loaded again, and run on the CPU with layers that hold their active weights only. About a minute.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModel

from examples.real_data import minilm
from hf_efficient import BiDSTConfig, compress, load_sparse, save_sparse, train_sparsely


def zeros(model: nn.Module) -> int:
    """Zeros in all linear layers."""
    return sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear))


def milliseconds(model: nn.Module, ids: torch.Tensor) -> float:
    """Median time of a forward pass."""
    times = []
    with torch.no_grad():
        for _ in range(7):
            start = time.perf_counter()
            model(input_ids=ids)
            times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("sparse_minilm"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    model: Any = AutoModel.from_pretrained(minilm()).eval()
    for layer in model.encoder.modules():
        if isinstance(layer, nn.Linear):
            size = layer.weight.abs()
            layer.weight.data[size < size.flatten().kthvalue(int(arguments.sparsity * size.numel())).values] = 0.0
    pruned = zeros(model)

    # distribution="as_pruned": exactly the weights that are not zero now stay active
    model = get_peft_model(model, BiDSTConfig(distribution="as_pruned", topology="static"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    train_sparsely(model, optimizer, arguments.steps)
    for _ in range(arguments.steps):  # your own loop, loss and data here
        ids = torch.randint(1000, 20_000, (4, 32))
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model = model.merge_and_unload().eval()
    print(f"zeros before and after fine-tuning: {pruned:,} and {zeros(model):,}")

    model.save_pretrained(arguments.output / "plain")
    file = save_sparse(model, arguments.output / "sparse")
    plain = (arguments.output / "plain" / "model.safetensors").stat().st_size
    print(f"file: {plain / 1e6:.1f} MB plain, {file.stat().st_size / 1e6:.1f} MB sparse (embeddings stay dense)")

    ids = torch.randint(1000, 20_000, (8, 64))
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
    before = milliseconds(model, ids)
    model = compress(load_sparse(arguments.output / "sparse"), tokens=ids.numel())
    with torch.no_grad():
        difference = float((model(input_ids=ids).last_hidden_state - expected).abs().max())
    print(f"forward: {before:.0f} ms dense, {milliseconds(model, ids):.0f} ms compressed, difference {difference:.1e}")


if __name__ == "__main__":
    main()
