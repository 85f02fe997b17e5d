"""The metric video_quality, as `evaluate` loads it."""
