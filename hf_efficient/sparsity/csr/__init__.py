"""Linear layers computed as sparse products (CSR), in training and for inference, on the CPU."""
