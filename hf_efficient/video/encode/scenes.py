"""Scenes of a video, and which network plays each: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from hf_efficient.video.networks.backbones.luma import luma

REDUCED = (18, 32)  # height and width that frames are compared at
SHARPEST, AHEAD, AROUND = 0.03, 2.5, 3  # a cut changes luma by so much of white, and so many times its neighbors do
SHORTEST = 6  # frames of a scene


def changes(frames: Iterable[Tensor]) -> np.ndarray:
    """How far each frame differs from the one before: mean absolute change of luma at REDUCED, white is 1.

    Args:
        frames: (1, 3, h, w) in [0, 1] each, decoded from the stream.

    Returns:
        (T,) float64; 0 for the first.
    """
    found: list[float] = []
    last: Tensor | None = None
    for frame in frames:
        small = F.adaptive_avg_pool2d(luma(frame), REDUCED)
        found.append(0.0 if last is None else float((small - last).abs().mean()))
        last = small
    return np.array(found)


def scene_starts(change: np.ndarray, most: int) -> list[int]:
    """First frames of the scenes, 0 among them: the `most` - 1 sharpest cuts.

    At a cut the change is at least SHARPEST, and AHEAD times that of the AROUND frames before and after it: so a
    pan or a flash that lasts is none. Scenes are not shorter than SHORTEST.

    Args:
        change: (T,) as `changes` gives it.
        most: scenes.
    """
    cuts: list[int] = []
    for t in np.argsort(-change, kind="stable").tolist():
        around = np.concatenate([change[max(1, t - AROUND) : t], change[t + 1 : t + 1 + AROUND]])
        sharp = change[t] >= max(SHARPEST, AHEAD * float(around.max(initial=0.0)))
        far = all(abs(t - other) >= SHORTEST for other in (0, *cuts, len(change)))
        if sharp and far and len(cuts) < most - 1:
            cuts.append(t)
    return [0, *sorted(cuts)]


@dataclass(frozen=True)
class Offers:
    """What S scenes may be played by, and what it costs.

    Args:
        common: (C, S) error of luma by networks that are sent once for all scenes. The first costs nothing; the last
            is the delta of the whole video.
        common_bytes: (C,) of each.
        own: (S,) error by a delta of the scene's own.
        before: (S,) error by the own delta of the scene before.
        alone_bytes: (S,) of an own delta, where the delta of the whole video is not sent.
        over_bytes: (S,) of an own delta as a difference to that.
        shares: (S,) of all frames that lie in each scene.
    """

    common: np.ndarray
    common_bytes: Sequence[int]
    own: np.ndarray
    before: np.ndarray
    alone_bytes: Sequence[int]
    over_bytes: Sequence[int]
    shares: np.ndarray

    def cost(self, ways: Sequence[int], sent: Sequence[bool], price: float) -> float:
        """D + λ R of a choice: `ways` as `cheapest_ways` returns them, `sent` the common networks that are sent."""
        own_bytes, kinds = self.over_bytes if sent[-1] else self.alone_bytes, len(self.common)
        errors = np.concatenate([self.common, [self.own, self.before]])[list(ways), np.arange(len(ways))]
        rate = sum(n for n, there in zip(self.common_bytes, sent, strict=True) if there)
        rate += sum(own_bytes[s] for s, way in enumerate(ways) if way == kinds)
        return float(self.shares @ errors + price * rate)


def cheapest_ways(offers: Offers, price: float) -> tuple[list[int], tuple[bool, ...]]:
    """The choice with the least D + λ R: exact, by dynamic programming over the scenes.

    Args:
        offers: of which one is taken for each scene.
        price: λ, error for a byte.

    Returns:
        For each scene the number of a common network, C for a delta of its own, C + 1 for that of the scene before,
        which must then have its own; and which common networks are sent.
    """
    kinds = len(offers.common_bytes)
    found = []
    for rest in product((True, False), repeat=kinds - 1):
        sent = (True, *rest)
        ways = _along(offers, price, sent)
        found.append((offers.cost(ways, sent, price), ways, sent))
    _, ways, sent = min(found, key=lambda choice: choice[0])
    return ways, sent


def _along(offers: Offers, price: float, sent: Sequence[bool]) -> list[int]:
    """The cheapest ways where these common networks are sent; the state is whether the scene before has its own."""
    kinds, own_bytes = len(sent), offers.over_bytes if sent[-1] else offers.alone_bytes
    common = np.where(np.array(sent)[:, None], offers.common, np.inf)
    paths: dict[bool, tuple[float, list[int]]] = {False: (0.0, [])}
    for s, share in enumerate(offers.shares):
        least = int(common[:, s].argmin())
        cost, path = min(paths.values(), key=lambda one: one[0])
        others = [(cost + share * common[least, s], [*path, least])]
        if True in paths:
            cost_own, path_own = paths[True]
            others.append((cost_own + share * offers.before[s], [*path_own, kinds + 1]))
        mine = (cost + share * offers.own[s] + price * own_bytes[s], [*path, kinds])
        paths = {False: min(others, key=lambda one: one[0]), True: mine}
    return min(paths.values(), key=lambda one: one[0])[1]


def frames_of(starts: Sequence[int], total: int) -> np.ndarray:
    """(T,) number of the scene that each frame lies in."""
    return np.repeat(np.arange(len(starts)), np.diff([*starts, total]))


def sampled_frames(starts: Sequence[int], total: int, each: int) -> dict[int, int]:
    """Frame -> scene: at most `each` frames of every scene, evenly spaced."""
    chosen: dict[int, int] = {}
    for scene, (first, end) in enumerate(zip(starts, [*starts[1:], total], strict=True)):
        count = end - first
        inner = range(first, end) if count <= each else np.linspace(first, end - 1, each + 2)[1:-1]
        chosen |= {int(t): scene for t in inner}
    return chosen
