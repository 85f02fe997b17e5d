"""From a video file to a bundle: `fit.py` has the stages in order."""
