"""The metric sparsity, as `evaluate` loads it."""
