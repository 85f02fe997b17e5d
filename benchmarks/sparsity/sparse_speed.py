"""What sparsity saves on a CPU: `python -m benchmarks.sparsity.sparse_speed`.

Dense layers against CSR layers (active weights only: CSR products, SDDMM), 80 to 99 % sparse, one thread:

- training (forward, dL/dx, dL/dw, one Adam step) and inference of the linear layers of a transformer block;
- training and inference of a whole encoder: stock, BiDST with every layer dense, with every layer CSR, and "auto",
  which times each layer once and takes the faster way;
- bytes of weights, gradients and Adam's state (counted from the tensors), peak memory of a training process (measured,
  above that of the same process before training), size of the saved file.

Times are medians of runs that take turns in one process. With the package `sparseprop` installed (C++ kernels for
sparse backpropagation), its linear layer is timed too. Writes JSON, table and plot.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks.harness.memory import resident
from benchmarks.harness.options import common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.harness.timing import time_in_turns
from hf_efficient import BiDSTConfig, compress, save_sparse
from hf_efficient.sparsity.csr.linear import CSRLinear
from hf_efficient.sparsity.csr.product import CSRPath
from hf_efficient.sparsity.sparse_weight import SparseWeight
from hf_efficient.sparsity.tuner.layer import BiDSTLayer

SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
LAYERS = ((768, 768), (3072, 768), (768, 3072))  # (out, in): attention, and both of the feed-forward part
ENCODER = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
BATCH, LENGTH = 8, 64


def medians(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median time of each call in ms; they take turns for about `seconds`."""
    return {name: 1e3 * median(values) for name, values in time_in_turns(calls, seconds=seconds).items()}


def random_sparse(shape: tuple[int, int], sparsity: float) -> SparseWeight:
    """A weight with random indices."""
    n = shape[0] * shape[1]
    k = round((1 - sparsity) * n)
    weight = SparseWeight(shape, k)
    weight.select(torch.randperm(n)[:k].sort().values, torch.randn(k) * 0.02)
    return weight


def train_call(forward: Callable[[Tensor], Tensor], parameters: list[Any], x: Tensor) -> Callable[[], None]:
    """One training step with a given dL/dy."""
    optimizer = torch.optim.Adam(parameters, lr=1e-5)
    slope = torch.randn(forward(x).shape)

    def step() -> None:
        x.grad = None
        forward(x).backward(slope)
        optimizer.step()
        optimizer.zero_grad()

    return step


def of_block(rows: dict[str, dict[str, float]], sparsity: float, kind: str) -> float:
    """ms of all linear layers of a transformer block: four of attention, two of the feed-forward part."""
    return sum(rows[f"{o}x{i} {sparsity}"][kind] * (4 if o == i else 1) for o, i in LAYERS)


def layer_times(shape: tuple[int, int], sparsity: float, tokens: int, seconds: float) -> dict[str, float]:
    """Dense and CSR, training and inference, of one linear layer without bias."""
    dense = nn.Linear(shape[1], shape[0], bias=False)
    sparse, path = random_sparse(shape, sparsity), CSRPath("csr")
    x = torch.randn(tokens, shape[1], requires_grad=True)
    still = x.detach()
    inference = CSRLinear(sparse.dense())
    calls: dict[str, Callable[[], object]] = {
        "train dense": train_call(dense, [dense.weight], x),
        "train csr": train_call(lambda x: path(sparse, x), [sparse.values], x),
        "infer dense": torch.no_grad()(lambda: dense(still)),
        "infer csr": lambda: inference(still),
    }
    other = sparseprop_layer(sparse.dense().detach())
    if other is not None:
        calls["train sparseprop"] = train_call(other, list(other.parameters()), x)
    return medians(calls, seconds)


def sparseprop_layer(weight: Tensor) -> nn.Module | None:
    """The linear layer of `sparseprop`, if that is installed."""
    try:
        from sparseprop.modules import SparseLinear
    except ImportError:
        return None
    layer: nn.Module = SparseLinear(weight)
    return layer


def encoder(sparsity: float | None, backend: str = "dense") -> nn.Module:
    """A BERT encoder, stock or with BiDST in all linear layers."""
    torch.manual_seed(0)
    model: nn.Module = BertModel(BertConfig(vocab_size=1000, **ENCODER), add_pooling_layer=False)
    if sparsity is None:
        return model
    config = BiDSTConfig(sparsity=sparsity, backend=backend, distribution="uniform", train_others=False)
    return get_peft_model(model, config)


def encoder_step(model: nn.Module) -> Callable[[], None]:
    """One training step of the linear layers of an encoder (embeddings and norms rest)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and ("embed" not in name.lower()) and "LayerNorm" not in name)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids = torch.randint(0, 1000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    model.train()

    def step() -> None:
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def encoder_times(sparsity: float, seconds: float) -> dict[str, float]:
    """Training and inference of the whole encoder."""
    models = {"stock": encoder(None), **{k: encoder(sparsity, k) for k in ("dense", "csr", "auto")}}
    calls: dict[str, Callable[[], object]] = {f"train {name}": encoder_step(m) for name, m in models.items()}
    times = medians(calls, seconds)
    pruned = encoder(sparsity).merge_and_unload().eval()  # type: ignore[operator]
    compressed = compress(encoder(sparsity).merge_and_unload().eval(), tokens=BATCH * LENGTH)  # type: ignore[operator]
    ids = torch.randint(0, 1000, (BATCH, LENGTH))
    no_grad = torch.no_grad()
    infer: dict[str, Callable[[], object]] = {
        "infer stock": no_grad(lambda: pruned(input_ids=ids)),
        "infer compressed": no_grad(lambda: compressed(input_ids=ids)),
    }
    times |= medians(infer, seconds / 2)
    kept = [m.backend["default"] for m in models["auto"].modules() if isinstance(m, BiDSTLayer)]
    decided = [m for m in models["auto"].modules() if isinstance(m, SparseWeight)]
    times["csr layers of auto"] = sum(bool(w.memory.get("csr", False)) for w in decided) / max(1, len(kept))
    return times


def memory(sparsity: float) -> dict[str, float]:
    """MB that training holds for the linear layers, and of the file."""
    model = encoder(sparsity, "csr")
    weights = [m.sparse_weight("default") for m in model.modules() if isinstance(m, BiDSTLayer)]
    n, k = sum(w.numel for w in weights), sum(len(w.values) for w in weights)
    with tempfile.TemporaryDirectory() as folder:
        plain = model.merge_and_unload()  # type: ignore[operator]
        linear = nn.ModuleDict(
            {name.replace(".", "/"): m for name, m in plain.named_modules() if isinstance(m, nn.Linear)}
        )
        for layer in linear.values():
            layer.register_parameter("bias", None)
        sparse_file = save_sparse(linear, folder).stat().st_size
        save_file({name: t.contiguous() for name, t in linear.state_dict().items()}, f"{folder}/dense.safetensors")
        dense_file = Path(f"{folder}/dense.safetensors").stat().st_size
    return {
        "train state dense, MB": 16 * n / 1e6,  # weight, gradient, two moments, 4 bytes each
        "train state csr, MB": (16 * k + 4 * k) / 1e6,  # and int32 indices; the pattern for CSR comes on top:
        "pattern, MB": 24 * k / 1e6,  # two orders of int64, rows and columns of int32
        "file dense, MB": dense_file / 1e6,
        "file sparse, MB": sparse_file / 1e6,
        "file ratio": dense_file / sparse_file,
    }


def peak(sparsity: float | None) -> float:
    """MB by which three training steps raise the peak memory of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.sparsity.sparse_speed", "--peak", str(sparsity)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_peak(sparsity: float | None) -> float:
    """In this process."""
    model = encoder(sparsity, "csr")
    before = resident(reset_peak=True)
    step = encoder_step(model)
    for _ in range(3):
        step()
    after = resident()
    if before is None or after is None:
        raise SystemExit("Peak memory is read from /proc, which only Linux has.")
    return (after[1] - before[0]) / 1.024e6


def table(result: dict[str, Any]) -> str:
    """All figures as Markdown; speeds are dense time over CSR time."""
    heads = [f"{s:.0%}" for s in SPARSITIES]
    rows: list[list[str]] = []

    def line(label: str, cells: Sequence[float], digits: int = 2) -> None:
        rows.append([label, *(f"{c:.{digits}f}" for c in cells)])

    layers = result["layers"]
    for kind in ("train", "infer"):
        for shape in LAYERS:
            times = [layers[f"{shape[0]}x{shape[1]} {s}"] for s in SPARSITIES]
            line(f"{kind}, layer {shape[0]}x{shape[1]}", [r[f"{kind} dense"] / r[f"{kind} csr"] for r in times])
        block = [of_block(layers, s, f"{kind} dense") / of_block(layers, s, f"{kind} csr") for s in SPARSITIES]
        line(f"**{kind}, all linear layers of a block**", block)
    if any("train sparseprop" in row for row in layers.values()):
        block = [of_block(layers, s, "train dense") / of_block(layers, s, "train sparseprop") for s in SPARSITIES]
        line("train, sparseprop's layers of a block", block)
    encoders = [result["encoder"][str(s)] for s in SPARSITIES]
    for name in ("dense", "csr", "auto"):
        line(f"train, whole encoder, backend={name!r}", [r["train stock"] / r[f"train {name}"] for r in encoders])
    line("infer, whole encoder, compress", [r["infer stock"] / r["infer compressed"] for r in encoders])
    memories = [result["memory"][str(s)] for s in SPARSITIES]
    for name in memories[0]:
        line(name, [m[name] for m in memories], 1)
    line("peak memory of training, MB above start (stock: {:.0f})".format(result["peak"]["stock"]),
         [result["peak"][str(s)] for s in SPARSITIES], 0)  # fmt: skip
    return markdown(["faster than dense, times", *heads], rows)


def plot(result: dict[str, Any], path: Path) -> None:
    """Speed over sparsity."""
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    ticks = [f"{s:.0%}" for s in SPARSITIES]
    for shape in LAYERS:
        rows = [result["layers"][f"{shape[0]}x{shape[1]} {s}"] for s in SPARSITIES]
        for kind, style in (("train", "-"), ("infer", "--")):
            ratio = [r[f"{kind} dense"] / r[f"{kind} csr"] for r in rows]
            axes.plot(ticks, ratio, style, marker="o", label=f"{kind} {shape[0]}x{shape[1]}")
    encoders = [result["encoder"][str(s)] for s in SPARSITIES]
    axes.plot(ticks, [r["train stock"] / r["train auto"] for r in encoders], "k-", marker="s", linewidth=2.2,
              label="train encoder, auto")  # fmt: skip
    axes.plot(ticks, [r["infer stock"] / r["infer compressed"] for r in encoders], "k--", marker="s", linewidth=2.2,
              label="infer encoder, compress")  # fmt: skip
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="sparsity", ylabel="times faster than dense")
    axes.legend(fontsize=7, ncols=2)
    save(figure, path, 140)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "sparse_speed")
    made.add_argument("--tokens", type=int, default=512, help="activations of a layer: batch times length")
    made.add_argument("--seconds", type=float, default=3.0, help="measured for each layer, and for each encoder")
    made.add_argument("--peak", help=argparse.SUPPRESS)
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    if arguments.peak is not None:
        print(measure_peak(None if arguments.peak == "None" else float(arguments.peak)))
        return
    record_run(arguments.output)
    torch.manual_seed(0)
    result: dict[str, Any] = {"layers": {}, "encoder": {}, "memory": {}, "peak": {"stock": peak(None)}}
    for sparsity in SPARSITIES:
        for shape in LAYERS:
            key = f"{shape[0]}x{shape[1]} {sparsity}"
            result["layers"][key] = layer_times(shape, sparsity, arguments.tokens, arguments.seconds)
        result["encoder"][str(sparsity)] = encoder_times(sparsity, arguments.seconds)
        result["memory"][str(sparsity)] = memory(sparsity)
        result["peak"][str(sparsity)] = peak(sparsity)
    result["setting"] = {"tokens": arguments.tokens, "batch": BATCH, "length": LENGTH, "encoder": ENCODER}
    write_json(arguments.output / "results.json", result)
    write_table(arguments.output / "table.md", table(result))
    plot(result, arguments.output / "speed.png")


if __name__ == "__main__":
    main()
