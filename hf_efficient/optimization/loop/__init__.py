"""The torch optimizers, for plain training loops, accelerate, Lightning and the stock Trainer."""
