"""From a video file to a bundle: `stages.py` has the stages in order."""
