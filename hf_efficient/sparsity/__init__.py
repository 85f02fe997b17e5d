"""Networks with few weights: which of them live (`topology`), and what is gained from those that do not.

Nothing is imported here, so that reading one part does not load the others.
"""
