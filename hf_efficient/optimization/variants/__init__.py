"""The methods: one file each, its equation first. `engine/variant.py` says what a method is."""
