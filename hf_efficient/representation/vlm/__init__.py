"""Vision-language models of transformers with fewer visual tokens."""
