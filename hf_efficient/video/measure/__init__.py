"""What a bundle is worth."""
