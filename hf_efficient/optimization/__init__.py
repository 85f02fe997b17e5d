"""Sharpness-aware training: S2-SAM, ZO-SAM, and the methods they are compared with.

`variants/` has one file for each method, its equation first. `engine/` moves the weights and brings them back exactly;
`loop/` holds the torch optimizers, `training/` the Trainer; `arguments.py` is the configuration of both.
"""
