"""Layers that are sparse in memory and in time."""
