"""Flat minima for less than a second backward pass: S2-SAM, ZO-SAM, and the methods they are compared with.

`perturbation` moves the weights and brings them back exactly; `sam`, `s2sam`, `zosam`, `looksam` and `msam` say where
to; `trainer` and `optimizer` are the ways in.
"""
