"""The networks, and the transformers model that holds them."""
