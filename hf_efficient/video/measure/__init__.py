"""Quality and bit rate of a bundle."""
