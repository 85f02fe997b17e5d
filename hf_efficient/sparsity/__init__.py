"""Sparse networks: which weights are active (`topology`), training them (`training`, `tuner`), and what it saves.

`csr` computes layers as sparse products, `storage` writes small files. Nothing is imported here, so that reading one
part does not load the others.
"""
