"""A small network with LoRA, and its merged weights computed densely: what steps in their space are held against."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

RHO, RATE, ALPHA, RANK = 0.3, 0.05, 5, 2
SCALE = ALPHA / RANK


class Net(nn.Module):
    """A convolution and two layers in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, stride=2, padding=1)
        self.first, self.head = nn.Linear(20, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.first(torch.tanh(self.conv(x)).flatten(1))))
        return logits


TARGETS = ("conv", "first")


def adapted(trained: bool = True, **kwargs: Any) -> Any:
    """LoRA on two layers; the head trains as a whole. With `trained`, B is not zero."""
    torch.manual_seed(0)
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS), "modules_to_save": ["head"], **kwargs}
    model = get_peft_model(Net(), LoraConfig(**settings)).double()
    if trained:
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.3)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 2, 4, 4, generator=generator).double(), torch.randint(0, 3, (6,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x), y)


def factors(model: Any, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    layer = model.get_base_model().get_submodule(name)
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def head(model: Any) -> nn.Linear:
    inner: nn.Linear = model.get_base_model().head.modules_to_save["default"]
    return inner


class Dense:
    """The same network with merged weights of its own: what the package is held against. It knows no hooks."""

    def __init__(self, model: Any) -> None:
        self.net = Net().double()
        base = model.get_base_model()
        self.frozen = {f"{name}.{kind}": getattr(base.get_submodule(name).base_layer, kind).detach()
                       for name in TARGETS for kind in ("weight", "bias")}  # fmt: skip

    def weights(self, model: Any) -> dict[str, Tensor]:
        found = dict(self.frozen)
        for name in TARGETS:
            a, b = (p.detach() for p in factors(model, name))
            key = f"{name}.weight"
            found[key] = found[key] + SCALE * (b.flatten(1) @ a.flatten(1)).view(found[key].shape)
        return found | {f"head.{n}": p.detach().clone() for n, p in head(model).named_parameters()}

    def gradient(self, weights: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        x, y = batch(step)
        loss = nn.functional.cross_entropy(functional_call(self.net, leaves, (x,)), y)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))

    def direction(self, model: Any, g: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient, projected by least squares on what the adapters and the head can change."""
        found = {name: d for name, d in g.items() if name.startswith("head.")}
        for name in TARGETS:
            a, b = (p.detach().flatten(1) for p in factors(model, name))
            changes = torch.cat([_of_b(a, len(b)), _of_a(b, a.shape[1])])
            weight = g[f"{name}.weight"]
            found[f"{name}.weight"] = on_span(weight.flatten(), changes).view(weight.shape)
        return found


def _of_b(a: Tensor, rows: int) -> Tensor:
    """s ∂B A for every entry of B, one change a row."""
    eye = torch.eye(rows * len(a), dtype=a.dtype).view(-1, rows, len(a))
    return (SCALE * eye @ a).flatten(1)


def _of_a(b: Tensor, columns: int) -> Tensor:
    """s B ∂A for every entry of A."""
    eye = torch.eye(b.shape[1] * columns, dtype=b.dtype).view(-1, b.shape[1], columns)
    return (SCALE * b @ eye).flatten(1)


def on_span(vector: Tensor, rows: Tensor) -> Tensor:
    """The projection of a vector on the span of rows, which may depend on each other."""
    _, lengths, right = torch.linalg.svd(rows, full_matrices=False)
    kept = right[lengths > 1e-10 * lengths.max()] if lengths.max() > 0 else right[:0]
    return kept.T @ (kept @ vector)


def dense_gradients(model: Any, dense: Dense, moved: dict[str, Tensor], step: int) -> list[Tensor]:
    """What A, B and the head get from the gradient at moved weights, in the order of `parameters`."""
    g = dense.gradient(moved, step)
    found: dict[Tensor, Tensor] = {p: g[f"head.{name}"] for name, p in head(model).named_parameters()}
    for name in TARGETS:
        a, b = factors(model, name)
        of = g[f"{name}.weight"].flatten(1)
        found[a] = (SCALE * b.detach().flatten(1).T @ of).view(a.shape)
        found[b] = (SCALE * of @ a.detach().flatten(1).T).view(b.shape)
    return [found[p] for p in trainable(model)]


def moved(weights: dict[str, Tensor], direction: dict[str, Tensor], rho: float = RHO) -> dict[str, Tensor]:
    norm = torch.cat([d.flatten() for d in direction.values()]).norm()
    return {name: w + rho * direction[name] / norm if name in direction else w for name, w in weights.items()}


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def bits(model: nn.Module) -> list[Tensor]:
    return [v.detach().clone() for v in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
