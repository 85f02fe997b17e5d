"""Fewer visual tokens for vision-language models.

Data flows one way: `config` -> pure maths on tensors (`importance`, `selection`, `reduce`) -> the Hugging Face face
(`inputs`, `attach`, `families`). Nothing is imported here, so that reading one part does not load the others.
"""
