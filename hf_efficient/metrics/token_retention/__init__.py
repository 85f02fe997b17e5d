"""The metric token_retention, as `evaluate` loads it."""
