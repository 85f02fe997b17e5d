"""The metric loss_rise as a module of `evaluate`."""

import hf_efficient.metrics.face as face

Module = face.metric("loss_rise")
