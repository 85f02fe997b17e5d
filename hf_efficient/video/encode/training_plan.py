"""The training plan: patches, steps and start of every network, from settings and scores alone."""

from __future__ import annotations

import numpy as np

from hf_efficient.video.networks.spec import NetworkSpec
from hf_efficient.video.settings import AUTO, FitSettings

from .overfit import Recipe

GENERAL = "general"  # name of the network that all experts start from


class TrainingPlan:
    """The training plan of one fit.

    Args:
        settings: of the fit.
        errors: (T, I·J) mean squared error of every patch by the general model f0.
    """

    def __init__(self, settings: FitSettings, errors: np.ndarray) -> None:
        self.settings, self.errors = settings, errors

    def labels(self) -> tuple[np.ndarray, int]:
        """(T·I·J,) chunk of each patch, and the number of chunks."""
        s, errors, method = self.settings, self.errors, self.settings.assignment
        k = method.auto_chunks(errors.ravel(), s.steps) if s.num_chunks == AUTO else int(s.num_chunks)
        return method.labels(errors, k, s.edges), k

    def chosen_patches(self) -> dict[str, np.ndarray]:
        """Name of each network to train -> sorted numbers of its patches."""
        labels, k = self.labels()
        rng = np.random.default_rng(self.settings.seed)
        patches = self.settings.assignment.training_patches(labels, k, rng)
        chosen = {f"expert-{m}": numbers for m, numbers in enumerate(patches) if len(numbers)}
        if len(chosen) > 1 and self.settings.same_networks and self.settings.warm_start == "general":
            chosen = {GENERAL: np.arange(labels.size), **chosen}
        most = self.settings.max_patches
        return {name: np.sort(rng.permutation(numbers)[:most]) for name, numbers in chosen.items()}

    def recipes(self) -> dict[str, Recipe]:
        """How each network is trained. A common start gets half of the steps; the rest is divided equally."""
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
        """Whether the context of a network's patches covers its receptive field, so that no layer pads."""
        return self.spec(name).receptive_radius <= self.settings.context

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
