"""A plan: its file, its folder, its card, and how it is put on a model."""
