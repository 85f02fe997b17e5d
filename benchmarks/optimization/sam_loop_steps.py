"""Steps of a plain loop for `sam_step.py`: our torch optimizers, and those of pytorch_optimizer."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

from hf_efficient import S2SAM, SAM, ZOSAM, LookSAM

#: What takes the steps.
BASES = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}
OURS: dict[str, Any] = {
    "S2SAM": S2SAM, "ZOSAM": ZOSAM, "ZOSAM, guided": functools.partial(ZOSAM, guided=True), "LookSAM, k=5": LookSAM,
    "SAM": SAM,
}  # fmt: skip


def loop_steps(
    build: Callable[[int], Any], batch: int, optimizer: str, names: list[str], peers: bool
) -> dict[str, Callable[[], None]]:
    """Those of `OURS` in a plain loop, over one of `BASES`, beside plain steps; with peers pytorch_optimizer's, too."""
    torch.manual_seed(0)
    model, inputs = build(batch)
    loss = lambda: model(**inputs).loss  # noqa: E731
    params, base = list(model.parameters()), BASES[optimizer]
    steps: dict[str, Callable[[], None]] = {}

    plain = base(params, lr=1e-4)

    def plain_step() -> None:
        loss().backward()
        plain.step()
        plain.zero_grad()

    steps["plain"] = plain_step
    for name in names:
        ours = OURS[name](params, base, rho=0.05, lr=1e-4)

        def our_step(ours: Any = ours) -> None:
            ours.perturb(loss)
            loss().backward()
            ours.step()
            ours.zero_grad()

        steps[f"ours: {name}"] = our_step
    return steps | (peer_steps(model, loss, base) if peers else {})


def peer_steps(model: Any, loss: Callable[[], torch.Tensor], base: Any) -> dict[str, Callable[[], None]]:
    """Those of pytorch_optimizer, which run forward and backward in a closure."""
    import pytorch_optimizer as peer

    steps: dict[str, Callable[[], None]] = {}
    params = list(model.parameters())
    for name, kwargs in (("SAM", {}), ("LookSAM, k=5", {"k": 5}), ("FriendlySAM", {}), ("WSAM", {"model": model})):
        with contextlib.suppress(Exception):  # a peer whose constructor has changed is left out
            theirs = getattr(peer, name.split(",")[0])(params=params, base_optimizer=base, rho=0.05, lr=1e-4, **kwargs)

            def their_step(theirs: Any = theirs) -> None:
                def closure() -> torch.Tensor:
                    theirs.zero_grad()
                    value = loss()
                    value.backward()
                    return value

                closure()
                theirs.step(closure)
                theirs.zero_grad()

            their_step()
            steps[f"pytorch_optimizer: {name}"] = their_step
    return steps
