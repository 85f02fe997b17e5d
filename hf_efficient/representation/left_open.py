"""What settings of `TokenPrunerConfig` that are left open, "auto" or None, stand for."""

from __future__ import annotations

from hf_efficient.methods import REPRESENTATION


class LeftOpen:
    """The part of `TokenPrunerConfig` that answers for what its user did not say."""

    method: str
    importance: str
    initial_centers: str
    proportional_attention: bool | None
    coverage_mix: float | None
    coverage_power: float | None

    @property
    def importance_source(self) -> str:
        """`importance`; where that is "auto", what the method's row of the table takes for it, if it takes anything."""
        if self.importance != "auto":
            return self.importance
        return str(REPRESENTATION.row(self.method).defaults.get("importance", "auto"))

    @property
    def wants_sizes(self) -> bool:
        """Whether attention shall count tokens by what they stand for, if it can. None: as the method's row says."""
        if self.proportional_attention is not None:
            return self.proportional_attention
        return bool(REPRESENTATION.row(self.method).defaults.get("proportional_attention", False))

    @property
    def centers_source(self) -> str:
        """`initial_centers`; where that is "auto", what it stands for."""
        if self.initial_centers != "auto":
            return self.initial_centers
        return "farthest_first" if self.wants_sizes else "coverage"

    def coverage_weights_of(self, k: int) -> tuple[float, float]:
        """a and gamma of the coverage weights pi for k tokens: `coverage_mix` and `coverage_power`, or what is best.

        Where sizes count, one token can stand for the whole background, so the background gets the weight of one token,
        1 - a = 1/k; where they do not, it takes as many tokens as it has weight, 1 - a = 1/2. Methods that do not
        choose by coverage are measured with 1/2 and power 1.
        """
        readers = REPRESENTATION.readers
        starts = self.method not in readers("initial_centers") or self.centers_source == "coverage"
        chooses_by_it = self.method in readers("coverage_power") and starts
        mix = 1 - 1 / max(2, k) if chooses_by_it and self.wants_sizes else 0.5
        power = 3.0 if chooses_by_it and self.importance_source == "distinct" else 1.0
        return (
            mix if self.coverage_mix is None else self.coverage_mix,
            power if self.coverage_power is None else self.coverage_power,
        )

    @property
    def quota_weights(self) -> tuple[float, float]:
        """a and gamma of the weights that quotas share by: `coverage_mix` and `coverage_power`, or 1/2 and 1.

        What is best in coverage is not here: there the most distinct group would have nearly all, and the others none.
        """
        mix, power = self.coverage_mix, self.coverage_power
        return 0.5 if mix is None else mix, 1.0 if power is None else power
