"""The tiny VLM that ships with hf_efficient: its pictures, questions, architecture and training data."""
