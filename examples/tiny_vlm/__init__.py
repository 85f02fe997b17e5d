"""The tiny VLM that ships with hf_efficient: its images, questions, architecture and training data."""
