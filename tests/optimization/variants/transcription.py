"""The papers' update rules once more, in float64 numpy with gradients by hand: what the package is held against.

Parameters are a list of arrays; nothing here imports the package.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Arrays = list[np.ndarray]
Gradient = Callable[[Arrays, int], Arrays]  # (parameters, step) -> gradient of that step's batch
Loss = Callable[[Arrays, int], float]


@dataclass
class MLP:
    """tanh network with one hidden layer and a mean cross-entropy: `torch.nn.Linear`'s layout (out, in)."""

    x: np.ndarray  # (steps, batch, inputs)
    y: np.ndarray  # (steps, batch)

    def forward(self, w: Arrays, t: int) -> tuple[np.ndarray, np.ndarray]:
        hidden = np.tanh(self.x[t] @ w[0].T + w[1])
        logits = hidden @ w[2].T + w[3]
        e = np.exp(logits - logits.max(1, keepdims=True))
        return hidden, e / e.sum(1, keepdims=True)

    def loss(self, w: Arrays, t: int) -> float:
        p = self.forward(w, t)[1]
        return float(-np.log(p[np.arange(len(p)), self.y[t]]).mean())

    def gradient(self, w: Arrays, t: int) -> Arrays:
        hidden, p = self.forward(w, t)
        d = p.copy()
        d[np.arange(len(p)), self.y[t]] -= 1
        d /= len(p)
        back = d @ w[2] * (1 - hidden**2)
        return [back.T @ self.x[t], back.sum(0), d.T @ hidden, d.sum(0)]


@dataclass
class Quadratic:
    """L(w) = 1/2 (w - b_t)' A (w - b_t) of one vector."""

    a: np.ndarray
    b: np.ndarray  # (steps, n)

    def loss(self, w: Arrays, t: int) -> float:
        return float(0.5 * (w[0] - self.b[t]) @ self.a @ (w[0] - self.b[t]))

    def gradient(self, w: Arrays, t: int) -> Arrays:
        return [self.a @ (w[0] - self.b[t])]


@dataclass
class SGD:
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    v: Arrays = field(default_factory=list)

    def step(self, w: Arrays, g: Arrays) -> None:
        g = [gi + self.weight_decay * wi for gi, wi in zip(g, w)]
        self.v = [self.momentum * v + gi for v, gi in zip(self.v, g)] if self.v else [gi.copy() for gi in g]
        for wi, v in zip(w, self.v):
            wi -= self.lr * v

    @property
    def first_moment(self) -> Arrays:
        return self.v


@dataclass
class AdamW:
    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    m: Arrays = field(default_factory=list)
    s: Arrays = field(default_factory=list)
    t: int = 0

    def step(self, w: Arrays, g: Arrays) -> None:
        b1, b2 = self.betas
        self.t += 1
        zeros = [np.zeros_like(gi) for gi in g]
        self.m = [b1 * m + (1 - b1) * gi for m, gi in zip(self.m or zeros, g)]
        self.s = [b2 * s + (1 - b2) * gi**2 for s, gi in zip(self.s or zeros, g)]
        for wi, m, s in zip(w, self.m, self.s):
            wi *= 1 - self.lr * self.weight_decay
            wi -= self.lr * (m / (1 - b1**self.t)) / (np.sqrt(s / (1 - b2**self.t)) + 1e-8)

    @property
    def first_moment(self) -> Arrays:
        return self.m


def norm(d: Arrays) -> float:
    return float(np.sqrt(sum((x**2).sum() for x in d)))


def shifted(w: Arrays, d: Arrays, rho: float, masks: Arrays, adaptive: bool = False) -> Arrays:
    """w + rho d/||d|| on the active entries; ASAM's w + rho T^2 d/||T d|| if adaptive."""
    d = [x * m for x, m in zip(d, masks)]
    size = [np.abs(x) if adaptive else np.ones_like(x) for x in w]
    length = norm([t * x for t, x in zip(size, d)])
    return [x.copy() for x in w] if length == 0 else [x + rho * t**2 * e / length for x, t, e in zip(w, size, d)]


def slopes(
    w: Arrays, directions: list[Arrays], loss: Callable[[Arrays], float], rho: float, delta: float | None
) -> Arrays:
    """Sum of z times the central difference of the loss along z, at delta z, or at distance rho without delta."""
    estimate = [np.zeros_like(x) for x in w]
    for z in directions:
        step = rho / norm(z) if delta is None else delta
        plus = loss([a + step * b for a, b in zip(w, z)])
        minus = loss([a - step * b for a, b in zip(w, z)])
        estimate = [e + (plus - minus) / (2 * step) * b for e, b in zip(estimate, z)]
    return estimate


def orthonormal(directions: list[Arrays], known: list[Arrays | None], masks: Arrays) -> list[Arrays]:
    """Gram-Schmidt over the directions, of which those that are known take the first places."""
    basis: list[Arrays] = []
    for i, z in enumerate(directions):
        d = z if i > 1 or known[i] is None else known[i]
        assert d is not None
        d = [a * m for a, m in zip(d, masks)]
        for other in basis:
            c = sum((a * b).sum() for a, b in zip(d, other))
            d = [a - c * b for a, b in zip(d, other)]
        basis.append([a / norm(d) for a in d])
    return basis


def train(
    method: str, w: Arrays, gradient: Gradient, loss: Loss, optimizer: SGD | AdamW, rho: float, steps: int,
    masks: Arrays | None = None, directions: Callable[[int], list[Arrays]] | None = None, delta: float | None = None,
    interval: int = 3, alpha: float = 0.7,
) -> list[Arrays]:  # fmt: skip
    """The weights after every step. The base optimizer gets whole gradients; masks only say what is perturbed."""
    w = [x.copy() for x in w]
    masks = masks if masks is not None else [np.ones_like(x) for x in w]
    previous: Arrays | None = None
    before: Arrays | None = None  # guided ZO-SAM: average of the gradients before the last
    across: Arrays = []
    history = []
    for t in range(steps):
        if method == "plain":
            g = gradient(w, t)
        elif method == "s2sam":
            g = gradient(w if previous is None else shifted(w, previous, rho, masks), t)
        elif method in ("sam", "asam"):
            g = gradient(shifted(w, gradient(w, t), rho, masks, method == "asam"), t)
        elif method == "msam":
            g = gradient(shifted(w, optimizer.first_moment, -rho, masks) if optimizer.first_moment else w, t)
        elif method == "looksam":
            g = gradient(w, t)
            if t % interval == 0:
                g_s = gradient(shifted(w, g, rho, masks), t)
                along = sum((a * b).sum() for a, b in zip(g, g_s)) / norm(g) ** 2
                across = [b - along * a for a, b in zip(g, g_s)]
                g = g_s
            else:
                g = [a + alpha * norm(g) / norm(across) * b for a, b in zip(g, across)]
        elif method == "zosam":
            assert directions is not None
            asked = [[a * m for a, m in zip(z, masks)] for z in directions(t)]
            estimate = slopes(w, asked, lambda point: loss(point, t), rho, delta)
            g = gradient(shifted(w, estimate, rho, masks), t)
        elif method == "guided":
            assert directions is not None
            basis = orthonormal(directions(t), [previous, before], masks)
            estimate = slopes(w, basis, lambda point: loss(point, t), rho, rho)
            g = gradient(shifted(w, estimate, rho, masks), t)
            if previous is not None:
                before = previous if before is None else [0.9 * a + 0.1 * b for a, b in zip(before, previous)]
        else:
            raise ValueError(method)
        optimizer.step(w, g)
        previous = g
        history.append([x.copy() for x in w])
    return history
