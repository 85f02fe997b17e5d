"""The metric loss_rise, as `evaluate` loads it."""
