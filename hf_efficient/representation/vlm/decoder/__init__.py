"""What changes inside the language model: positions, attention, caches, layers with fewer tokens."""
