"""Models with a token pruner behind an OpenAI-compatible server, and in lmms-eval."""
