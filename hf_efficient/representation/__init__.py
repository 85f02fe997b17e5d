"""Fewer visual tokens for vision-language models.

Data flows one way: `config`, then pure maths on tensors (`maths`, `selection`, `reduce`), then the face of transformers
(`vlm`), which `evaluation` measures. Nothing is imported here, so that reading one part does not load the others.
"""
