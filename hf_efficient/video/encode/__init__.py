"""From a video file to a bundle."""
