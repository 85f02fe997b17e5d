"""What all variants share: weights moved and brought back exactly, statistics and random numbers kept, acts counted."""
