"""The fit of method="delta" with scenes: each takes the cheapest network that pays, a delta of its own if need be.

After the delta of the whole video every scene trains its own, from that one and paying for what differs from it. Then
each takes what has the least D + λ R: the general network, scales and biases or the delta of the whole video, its own
delta, or that of the scene before. The result is one more candidate: it is sent where it beats all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from hf_efficient.video import routing
from hf_efficient.video.files.reader import read_frames
from hf_efficient.video.networks.delta import pack_delta, unpack_delta
from hf_efficient.video.networks.experts import DEFAULTS
from hf_efficient.video.patches import Geometry, to_tensor

from .candidates import Candidate, byte_price, frame_error
from .delta_fit import EXPERT, FINENESS, DeltaFit, rate_penalty
from .overfit import load_checkpoint, overfit
from .scenes import Offers, changes, cheapest_ways, frames_of, sampled_frames, scene_starts

SCENE = "scene-{}"
SCENE_SHARE = 1 / 3  # of the steps of the whole video, for each scene
SCENE_SAMPLES = 4  # frames of a scene that its offers are compared on
COMMON = ("general", "scales", "delta")


class SceneFit(DeltaFit):
    """`DeltaFit`, and a delta for each of at most `settings.scenes` scenes."""

    @cached_property
    def starts(self) -> list[int]:
        """First frame of every scene, from the decoded stream."""
        frames = (to_tensor(frame.rgb) for frame in read_frames(self.low_resolution))
        return scene_starts(changes(frames), self.settings.scenes)

    @property
    def of_frame(self) -> np.ndarray:
        """(T,) scene of every frame."""
        return frames_of(self.starts, len(self.plan.errors))

    @property
    def samples(self) -> int:
        return max(super().samples, SCENE_SAMPLES * len(self.starts))

    def wanted_patches(self) -> dict[str, np.ndarray]:
        """Those of the whole video, and for each scene its part of as many more."""
        wanted, errors = super().wanted_patches(), self.plan.errors
        most, scenes = -(-self.settings.max_patches // len(self.starts)), self.of_frame
        for scene in range(len(self.starts)):
            mine = np.flatnonzero(np.repeat(scenes == scene, errors.shape[1]))
            rng = np.random.default_rng([self.settings.seed, scene])
            wanted[SCENE.format(scene)] = np.sort(rng.permutation(mine)[:most])
        return wanted

    def train(self) -> None:
        """The delta of the whole video, then those of the scenes."""
        super().train()
        known, total = self.levels(EXPERT), len(self.plan.errors)
        every_step = self.plan.recipes()[EXPERT]
        recipe = replace(every_step, steps=max(1, round(every_step.steps * SCENE_SHARE)))
        with self.progress.training(recipe.steps * len(self.starts)) as count:
            for scene, frames in enumerate(np.bincount(self.of_frame)):
                name, (delta, _) = SCENE.format(scene), self.deltas()[EXPERT]
                load_checkpoint(self.checkpoint(EXPERT), delta)
                own = replace(recipe, seed=recipe.seed + 1 + scene)
                price = self.bit_price * total / frames  # its bits serve this part of the frames alone
                overfit(
                    delta, self.store(name), own, self.checkpoint(name), partial(count, name), self.processes.share,
                    loss=self.loss, penalty=partial(rate_penalty, price, known=known),
                )  # fmt: skip
                self.processes.wait()

    def scene_levels(self, scene: int) -> list[np.ndarray]:
        """What was trained for a scene, in whole steps."""
        delta = self.deltas()[EXPERT][0]
        load_checkpoint(self.checkpoint(SCENE.format(scene)), delta)
        return delta.levels()

    def candidates(self, every: int) -> list[Candidate]:
        """Those of the whole video, and the scenes if they differ."""
        found = super().candidates(every)
        by_name = {candidate.name: candidate for candidate in found}
        common = [by_name[name] for name in COMMON]
        own = [self.scene_levels(scene) for scene in range(len(self.starts))]
        offers, price = self._offers(by_name["bicubic"], common, own)
        ways, sent = cheapest_ways(offers, price)
        return [*found, self._scenes(ways, sent, own)] if set(ways) - set(range(len(COMMON))) else found

    def _offers(
        self, bicubic: Candidate, common: Sequence[Candidate], own: Sequence[Sequence[np.ndarray]]
    ) -> tuple[Offers, float]:
        """Errors on sampled frames of every scene, bytes, and λ."""
        general, whole, count = self.general.load(), self.levels(EXPERT), len(own)
        alone = [pack_delta([general], [levels], FINENESS) for levels in own]
        over = [len(pack_delta([general] * 2, [whole, levels], FINENESS)) for levels in own]
        nets = [self.candidate("own", self.general.spec, packed).nets[0] for packed in alone]
        sums, seen = np.zeros((len(common) + 3, count)), np.zeros(count)
        sampled = sampled_frames(self.starts, len(self.plan.errors), SCENE_SAMPLES)
        for t, pair in enumerate(self.pairs()):
            if (scene := sampled.get(t)) is None:
                continue
            candidates = [(c.nets[0], c.spec) for c in (*common, bicubic)]
            candidates += [(nets[n], self.general.spec) for n in (scene, max(0, scene - 1))]
            errors = [frame_error(net, spec, pair, self.info, self.device, self.loss)[2] for net, spec in candidates]
            sums[:, scene] += errors
            seen[scene] += 1
        means, shares = sums / seen, np.bincount(self.of_frame) / len(self.plan.errors)
        *kinds, of_bicubic, of_own, of_before = means
        of_before[0] = np.inf
        base = len(common[-1].delta)
        offers = Offers(
            np.array(kinds), [len(c.delta) for c in common], of_own, of_before,
            [len(packed) for packed in alone], [max(0, size - base) for size in over], shares,
        )  # fmt: skip
        rows = [{"name": "bicubic", "error": float(shares @ of_bicubic)}]
        return offers, byte_price(rows, self.low_resolution.stat().st_size)

    def _scenes(self, ways: Sequence[int], sent: Sequence[bool], own: Sequence[Sequence[np.ndarray]]) -> Candidate:
        """The networks of a choice, the delta of the whole video first: others are coded as differences to it."""
        zeros = [np.zeros_like(q) for q in own[0]]
        kinds = [n for n in reversed(range(len(COMMON))) if n in ways or (n == len(COMMON) - 1 and sent[n])]
        levels = {"general": zeros, "scales": self.levels("scales"), "delta": self.levels(EXPERT)}
        networks, place = [levels[COMMON[n]] for n in kinds], {n: at for at, n in enumerate(kinds)}
        of_scene: list[int] = []
        for scene, way in enumerate(ways):
            if way == len(COMMON):
                networks.append(list(own[scene]))
            of_scene.append(place[way] if way in place else len(networks) - 1)
        labels = np.array(of_scene)[self.of_frame]
        bases = [self.general.load() for _ in networks]
        grid = (DEFAULTS["patch_width"], DEFAULTS["patch_height"])  # a scene has all patches: this one needs no bytes
        g = Geometry(self.info.width, self.info.height, self.settings.scale, *grid)
        maps = np.broadcast_to(labels[:, None, None], (len(labels), g.rows, g.columns))
        packed, delta = routing.pack(maps, len(networks)), pack_delta(bases, networks, FINENESS)
        unpack_delta(delta, bases)
        config = self.candidate("scenes", self.general.spec, b"").config
        config |= {"num_experts": len(networks), "routing_bytes": len(packed)}
        names = (*COMMON, "own", "before")
        record = {"scenes": [{"frame": t, "by": names[way]} for t, way in zip(self.starts, ways, strict=True)]}
        nets = [net.to(self.device) for net in bases]
        return Candidate("scenes", config, delta, nets, self.general.spec, labels, packed, record)

    def expert_records(self, chosen: Candidate) -> list[dict[str, Any]]:
        if not len(chosen.of_frame):
            return super().expert_records(chosen)
        records, errors = [], self.plan.errors.sum(1, dtype=np.float64)
        for n, net in enumerate(chosen.nets):
            mine = chosen.of_frame == n
            scenes = np.unique(self.of_frame[mine]).tolist()
            store = SCENE.format(scenes[0]) if len(scenes) == 1 else EXPERT
            share = float(errors[mine].sum() / errors.sum()) if errors.any() else 0.0
            records.append(self.expert_record(net, store, self.settings.steps, share))
        return records
