"""The evaluation set of the tiny VLM, and drawings of what was kept."""
