"""What the selection methods share: torch alone."""
