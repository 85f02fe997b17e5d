"""The metric forgetting as a module of `evaluate`."""

import hf_efficient.metrics.face as face

Module = face.metric("forgetting")
