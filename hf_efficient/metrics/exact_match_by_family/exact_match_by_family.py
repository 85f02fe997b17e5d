"""The metric exact_match_by_family as a module of `evaluate`."""

import hf_efficient.metrics.face as face

Module = face.metric("exact_match_by_family")
