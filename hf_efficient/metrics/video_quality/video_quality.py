"""The metric video_quality as a module of `evaluate`."""

import hf_efficient.metrics.face as face

Module = face.metric("video_quality")
