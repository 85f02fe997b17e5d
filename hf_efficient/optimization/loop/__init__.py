"""The variants as torch optimizers, for plain training loops."""
