"""From a bundle to frames, a video file, a diffusers pipeline."""
