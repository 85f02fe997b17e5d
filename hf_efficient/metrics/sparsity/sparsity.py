"""The metric sparsity as a module of `evaluate`."""

import hf_efficient.metrics.face as face

Module = face.metric("sparsity")
