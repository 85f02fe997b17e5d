"""What all methods share: weights that move and come back to the bit, BatchNorm, dropout, checks, the interface."""
