"""Which patches of a video are learned together: one file for each method, named by a row of `hf_efficient.methods`.

A method works on one number for each patch: the mean squared error that a general model f0 makes on it. Pure numpy.
"""
