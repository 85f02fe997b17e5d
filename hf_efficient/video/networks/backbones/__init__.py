"""The networks that enlarge: one file each, layer by layer as published, and one row in `hf_efficient.methods`.

At the published sizes they have exactly the parameters of the papers' code; any width and depth works.
"""
