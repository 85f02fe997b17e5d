"""The Trainer: a whole window of micro-batches as one step, and checkpoints that keep what a variant remembers."""
