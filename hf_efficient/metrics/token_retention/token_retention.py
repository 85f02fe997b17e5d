"""The metric token_retention as a module of `evaluate`."""

import hf_efficient.metrics.face as face

Module = face.metric("token_retention")
