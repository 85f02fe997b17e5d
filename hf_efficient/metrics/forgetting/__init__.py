"""The metric forgetting, as `evaluate` loads it."""
