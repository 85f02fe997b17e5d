"""Sparse models in safetensors."""
