"""SAM, S2-SAM, ZO-SAM, LookSAM and MSAM as torch optimizers, for plain loops, accelerate, and the stock Trainer.

    opt = S2SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
    for x, y in data:
        opt.perturb()                       # SAM, ZOSAM, LookSAM: opt.perturb(lambda: loss_of(model(x), y))
        loss_of(model(x), y).backward()
        opt.step()                          # brings the weights back, then steps the base optimizer
        opt.zero_grad()

`with opt.perturb():` around forward and backward does the same and also brings the weights back after an exception.
`step()` without `perturb()` since the last step is refused. Where `step(closure)` runs forward and backward, as in
Lightning, S2SAM and MSAM perturb by themselves; the others need Lightning's manual optimization.
After `opt = accelerator.prepare(opt)` write `opt.train()` instead of `opt.perturb()` (S2SAM, MSAM), or
`opt.optimizer.perturb(...)`. `Trainer(optimizer_cls_and_kwargs=(S2SAM, {...}))` does it by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.optimization.variants.msam import MSAMAscent, check_momentum
from hf_efficient.optimization.variants.s2sam import S2SAMAscent
from hf_efficient.optimization.variants.sam import SAMAscent

from .perturbing_optimizer import PerturbingOptimizer, RhoSchedule


class S2SAM(PerturbingOptimizer):
    """S2-SAM: one forward and one backward pass, at w + rho g/‖g‖ with the gradient g of the last step. No closure.

    Args:
        params: parameters, or parameter groups.
        base_optimizer: class of the optimizer that updates the weights.
        rho: distance of the perturbation over all parameters, or a function of the step (0, 1, ...).
        adaptive: measure it in units of each weight's size.
        perturb_pruned: also move entries that a sparsity mask declares dead.
        base_kwargs: for the base optimizer (lr, momentum, weight_decay, ...).

    Raises:
        ValueError: rho is negative or not finite.
    """

    variant = S2SAMAscent


class SAM(PerturbingOptimizer):
    """SAM (with adaptive=True ASAM): `perturb(closure)` runs the first forward and backward pass by itself.

    Without a closure it uses the gradients that stand on the parameters: `loss.backward(); opt.perturb();
    loss_again.backward(); opt.step()`.

    Args: as for `S2SAM`.
    """

    variant = SAMAscent
    needs_batch = True


class ZOSAM(PerturbingOptimizer):
    """ZO-SAM: `perturb(closure)` estimates the direction from 2 num_queries losses, without a graph.

    Args:
        params, base_optimizer, rho: as for `S2SAM`.
        num_queries: directions m.
        delta: step of the finite difference, per weight; None asks at the distance of the step, as guided directions
            always do.
        guided: ask along the last gradients instead of at random.
        seed: of the directions.
        kwargs: adaptive, perturb_pruned and what the base optimizer takes, as for `S2SAM`.

    Raises:
        ValueError: a setting is out of range, or `delta` is given for guided directions.
    """

    needs_batch = needs_closure = True

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: type[Optimizer] = torch.optim.AdamW,
        rho: float | RhoSchedule = 0.05,
        *,
        num_queries: int = 1,
        delta: float | None = None,
        guided: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        settings = SAMArguments("zosam", num_queries=num_queries, delta=delta, guided=guided, direction_seed=seed)
        super().__init__(params, base_optimizer, rho, _ascent=settings.ascent(), **kwargs)


class LookSAM(PerturbingOptimizer):
    """LookSAM: SAM in every k-th step; in between, what it changed in the gradient is used again. Needs the closure.

    Args:
        params, base_optimizer, rho: as for `S2SAM`.
        reuse_interval: k.
        reuse_weight: alpha, length of what is reused, in lengths of the gradient.
        kwargs: adaptive, perturb_pruned and what the base optimizer takes, as for `S2SAM`.

    Raises:
        ValueError: a setting is out of range.
    """

    needs_batch = needs_closure = True

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: type[Optimizer] = torch.optim.AdamW,
        rho: float | RhoSchedule = 0.05,
        *,
        reuse_interval: int = 5,
        reuse_weight: float = 0.7,
        **kwargs: Any,
    ) -> None:
        settings = SAMArguments("looksam", reuse_interval=reuse_interval, reuse_weight=reuse_weight)
        super().__init__(params, base_optimizer, rho, _ascent=settings.ascent(), **kwargs)


class MSAM(PerturbingOptimizer):
    """MSAM: one forward and one backward pass, at w - rho v/‖v‖ with the base optimizer's momentum v. No closure.

    Args: as for `S2SAM`.

    Raises:
        ValueError: the base optimizer has no momentum, or it is not known where.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: type[Optimizer] = torch.optim.AdamW,
        rho: float | RhoSchedule = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(params, base_optimizer, rho, _ascent=MSAMAscent(self._base), **kwargs)
        if self.rho != 0:
            check_momentum(self.base)

    def _base(self) -> Optimizer:  # a method, which a copy of this optimizer binds to itself
        return self.base
