"""What is trained on what: chunks, training patches and steps of every network, from settings and scores alone."""

from __future__ import annotations

import numpy as np

from hf_efficient.video import stdo as chunking
from hf_efficient.video.networks.backbones import NetworkSpec
from hf_efficient.video.settings import AUTO, FitSettings

from .overfit import Recipe

GENERAL = "general"  # the network that all experts start from


class Plan:
    """The plan of one fit.

    Args:
        settings: what the bundle becomes.
        errors: (T, I·J) mean squared error of every patch by the general model f0.
    """

    def __init__(self, settings: FitSettings, errors: np.ndarray) -> None:
        self.settings, self.errors = settings, errors

    def labels(self) -> tuple[np.ndarray, int]:
        """(T·I·J,) chunk of each patch, and the number of chunks."""
        s, errors = self.settings, self.errors
        frames, flat = len(errors), errors.ravel()
        if s.method == "single":
            return np.zeros(flat.size, np.int64), 1
        if s.num_chunks == AUTO:
            joint = min(chunking.JOINT_CHUNKS, flat.size)
            k = joint if s.method == "jstdo" else chunking.choose_num_chunks(flat, s.steps)
        else:
            k = int(s.num_chunks)
        if s.method == "time":
            return chunking.time_chunks(frames, errors.shape[1], k), k
        return (chunking.equal_error if s.edges == "error" else chunking.equal_count)(flat, k), k

    def chosen_patches(self) -> dict[str, np.ndarray]:
        """Name of each network to train -> sorted numbers of its patches."""
        labels, k = self.labels()
        rng = np.random.default_rng(self.settings.seed)
        if self.settings.method == "jstdo":
            chosen = {"expert-0": chunking.joint_sample(labels, k, rng)}
        else:
            chosen = {f"expert-{m}": np.flatnonzero(labels == m) for m in range(k)}
            chosen = {name: numbers for name, numbers in chosen.items() if len(numbers)}
        if len(chosen) > 1 and self.settings.same_networks and self.settings.warm_start == "general":
            chosen = {GENERAL: np.arange(labels.size), **chosen}
        most = self.settings.max_patches
        return {name: np.sort(rng.permutation(numbers)[:most]) for name, numbers in chosen.items()}

    def recipes(self) -> dict[str, Recipe]:
        """How each network is trained: of the steps, half for a common start, the rest in equal parts."""
        s, names = self.settings, list(self.chosen_patches())
        general = s.steps // 2 if GENERAL in names else 0
        experts = [name for name in names if name != GENERAL]
        each = max(1, (s.steps - general) // len(experts))
        steps = {GENERAL: max(1, general), **dict.fromkeys(experts, each)}
        return {
            name: Recipe(
                steps[name], s.batch_size, s.learning_rate, 1000 * s.seed + n, s.checkpoint_every, self.trims(name)
            )
            for n, name in enumerate(names)
        }

    def trims(self, name: str) -> bool:
        """Whether a network's patches have all the context that it sees."""
        return self.spec(name).radius <= self.settings.halo

    def start(self, name: str) -> str | None:
        """The network that a network starts from, by its name."""
        names = list(self.chosen_patches())
        if GENERAL in names:
            return GENERAL if name != GENERAL else None
        before = names.index(name) - 1
        chained = self.settings.warm_start == "previous" and self.settings.same_networks
        return names[before] if chained and before >= 0 else None

    def spec(self, name: str) -> NetworkSpec:
        """What builds a network, by its name."""
        return self.settings.network(0 if name == GENERAL else int(name.removeprefix("expert-")))
