"""Training with a sparse topology: the engine behind an optimizer, its state, its ranks, and its warnings."""
