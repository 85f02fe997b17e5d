"""The Trainer: all micro-batches of a step at one point, and checkpoints that keep what a method remembers."""
