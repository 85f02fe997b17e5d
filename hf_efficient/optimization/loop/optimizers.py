"""SAM, ASAM, S2-SAM, ZO-SAM, LookSAM and MSAM as torch optimizers, for plain loops, accelerate, and the stock Trainer.

    opt = S2SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
    for x, y in data:
        opt.perturb()                       # SAM, ASAM, ZOSAM, LookSAM: opt.perturb(lambda: loss_of(model(x), y))
        loss_of(model(x), y).backward()
        opt.step()                          # brings the weights back, then steps the base optimizer
        opt.zero_grad()

`with opt.perturb():` around forward and backward does the same and also brings the weights back after an exception.
`step()` without `perturb()` since the last step is refused. Where `step(closure)` runs forward and backward, as in
Lightning, S2SAM and MSAM perturb automatically; the others need Lightning's manual optimization.
After `opt = accelerator.prepare(opt)` write `opt.train()` instead of `opt.perturb()` (S2SAM, MSAM), or
`opt.optimizer.perturb(...)`. `Trainer(optimizer_cls_and_kwargs=(S2SAM, {...}))` does so automatically.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from hf_efficient.optimization.variants.msam import check_momentum

from .perturbing_optimizer import PerturbingOptimizer, RhoSchedule


class S2SAM(PerturbingOptimizer):
    """S2-SAM: one forward and one backward pass, at w + rho g/‖g‖ with the gradient g of the last step. No closure.

    Source: Ji et al., NeurIPS 2024, Eq. 5 to 7.

    Args:
        params: parameters, or parameter groups.
        base_optimizer: class of the optimizer that updates the weights.
        rho: distance of the perturbation over all parameters, or a function of the step (0, 1, ...).
        adaptive: measure it in units of each weight's size.
        perturb_pruned: also move entries that a sparsity mask makes inactive.
        merged: the model, where the merged weights of its LoRA layers are to move: `perturb="merged"` in a Trainer.
        base_kwargs: for the base optimizer (lr, momentum, weight_decay, ...).

    Raises:
        TypeError: `base_optimizer` is not a class.
        ValueError: rho is negative or not finite, or the base optimizer cannot be used (it steps inside backward,
            needs a closure, or perturbs the weights itself); or `merged` has an adapter without a merged weight
            W + s B A, or is given with `adaptive`.
    """

    method = "s2sam"


class SAM(PerturbingOptimizer):
    """SAM: `perturb(closure)` runs the first forward and backward pass.

    Without a closure it uses the gradients that are on the parameters: `loss.backward(); opt.perturb();
    loss_again.backward(); opt.step()`. Source: Foret et al., 2021, arXiv 2010.01412.

    Args: as for `S2SAM`.

    Raises: as `S2SAM`.
    """

    method = "sam"


class ASAM(PerturbingOptimizer):
    """ASAM: SAM with distances in units of each weight's size; rho is about ten times as large.

    `ASAM(...)` equals `SAM(..., adaptive=True)`. Source: Kwon et al., 2021, arXiv 2102.11600.

    Args: as for `S2SAM`.

    Raises: as `S2SAM`.
    """

    method = "asam"


class ZOSAM(PerturbingOptimizer):
    """ZO-SAM: `perturb(closure)` estimates the direction from 2 num_queries losses, without a graph.

    Source: arXiv 2603.13115.

    Args:
        params, base_optimizer, rho: as for `S2SAM`.
        num_queries: directions m.
        delta: step of the finite difference, per weight; None probes at the distance of the step, as guided directions
            always do.
        guided: probe along the last gradients instead of at random.
        seed: of the directions.
        kwargs: adaptive, perturb_pruned and what the base optimizer takes, as for `S2SAM`.

    Raises:
        ValueError: as `S2SAM`; or a setting is out of range, or `delta` is given for guided directions.
    """

    method = "zosam"

    def __init__(
        self, params: Iterable[Any], base_optimizer: type[Optimizer] = torch.optim.AdamW,
        rho: float | RhoSchedule = 0.05, *, num_queries: int = 1, delta: float | None = None, guided: bool = False,
        seed: int = 0, **kwargs: Any,
    ) -> None:  # fmt: skip
        settings = {"num_queries": num_queries, "delta": delta, "guided": guided, "direction_seed": seed}
        super().__init__(params, base_optimizer, rho, _settings=settings, **kwargs)


class LookSAM(PerturbingOptimizer):
    """LookSAM: SAM in every k-th step; in between, what it changed in the gradient is used again. Needs the closure.

    Source: Liu et al., 2022, arXiv 2203.02714.

    Args:
        params, base_optimizer, rho: as for `S2SAM`.
        reuse_interval: k.
        reuse_weight: alpha, length of the reused part relative to the gradient.
        kwargs: adaptive, perturb_pruned and what the base optimizer takes, as for `S2SAM`.

    Raises:
        ValueError: as `S2SAM`, or a setting is out of range.
    """

    method = "looksam"

    def __init__(
        self, params: Iterable[Any], base_optimizer: type[Optimizer] = torch.optim.AdamW,
        rho: float | RhoSchedule = 0.05, *, reuse_interval: int = 5, reuse_weight: float = 0.7, **kwargs: Any,
    ) -> None:  # fmt: skip
        settings = {"reuse_interval": reuse_interval, "reuse_weight": reuse_weight}
        super().__init__(params, base_optimizer, rho, _settings=settings, **kwargs)


class MSAM(PerturbingOptimizer):
    """MSAM: one forward and one backward pass, at w - rho v/‖v‖ with the base optimizer's momentum v. No closure.

    Source: Becker et al., 2024, arXiv 2401.12033.

    Args: as for `S2SAM`.

    Raises:
        ValueError: as `S2SAM`; or the base optimizer has no momentum, or none that is known.
    """

    method = "msam"

    def __init__(
        self, params: Iterable[Any], base_optimizer: type[Optimizer] = torch.optim.AdamW,
        rho: float | RhoSchedule = 0.05, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, base_optimizer, rho, **kwargs)
        if self.rho != 0:
            check_momentum(self.base)
